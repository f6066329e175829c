"""Positions that are scored, and scores that are kept."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.assembly.ensembles import build_ensemble
from fusion.core import NextTokens
from fusion.options import Weighting
from fusion.prompt.echo import Echo
from fusion.prompt.scoring import PrefixScores, PromptScoring, ScoredPrompt, TextScores, choose, shares
from tests.support.toy_fuser import toy_ensemble
from tests.support.weighted_prompts import TALK, chat, report_of, weighted


@pytest.mark.parametrize("spread", ["evenly", "last"])
@pytest.mark.parametrize("limit", [4, 10, 30])
def test_no_more_positions_are_scored_than_allowed(tokenizers, run, spread, limit):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    report = report_of(
        running, chat(running.ensemble, TALK), weighted("packllm-sim", positions=limit, spread=spread)
    )
    assert 2 <= report.tokens <= limit
    assert report.scored["lingvo"] == report.tokens
    assert report.method == "packllm-sim"


def test_tokens_of_the_same_text_count_together_where_they_are_listed():
    """As a byte token and the character's own token."""
    best = np.array([[5, 7, 9], [4, 7, 9]], np.int32)
    logprobs = np.log([[0.5, 0.25, 0.125], [0.5, 0.25, 0.125]]).astype(np.float32)
    answer = NextTokens(0, best, logprobs, np.log([0.5, 0.0625]).astype(np.float32))
    prompt = ScoredPrompt(np.array([1, 5, 8], np.int32), np.arange(2), answer, {5: [7, 11], 8: [6]})
    assert np.exp(prompt.given(np.arange(2))) == pytest.approx([0.5, 0.0625])
    assert np.exp(prompt.given_text(np.arange(2))) == pytest.approx([0.75, 0.0625])


@pytest.mark.parametrize("positions", [9, 100])
def test_losses_are_sums_over_the_tokens_of_each_unit(tokenizers, positions):
    ensemble = toy_ensemble(tokenizers, pivot="lingvo")
    prompt, members = chat(ensemble, TALK), list(ensemble.models)
    weighting = Weighting("packllm-sim", positions=positions)
    found = PromptScoring.of(prompt, members, weighting, PrefixScores(), pivot="lingvo")
    rng, prompts = np.random.default_rng(3), {}
    for name, at in found.positions.items():
        logprobs = np.log(rng.random(len(at))).astype(np.float32)
        answer = NextTokens(0, np.empty((0, 0), np.int32), np.empty((0, 0), np.float32), logprobs)
        prompts[name] = ScoredPrompt(np.array(prompt.ids[name], np.int32), at, answer)
    texts = found.collect(prompts)
    assert len(texts) == len(TALK)
    for name, scored in prompts.items():
        widths = np.concatenate([text.tokens[name] for text in texts])
        units = np.split(scored.answer.appended_logprobs, np.cumsum(widths)[:-1])
        expected = [-unit.sum(dtype=np.float64) for unit in units]
        assert np.concatenate([text.nats[name] for text in texts]) == pytest.approx(expected, abs=1e-12)
        assert widths.sum() == len(scored.positions)


def test_a_long_conversation_is_gone_through_once(tokenizers, monkeypatch):
    """Not once for every message."""
    ensemble, hashed, sorts = toy_ensemble(tokenizers, pivot="lingvo"), [], []
    blake2b, lexsort = hashlib.blake2b, np.lexsort

    class Hash:
        def __init__(self, data=b"", **options):
            self.inner = blake2b(data, **options)
            self.digest = self.inner.digest

        def update(self, data):
            hashed.append(len(data))
            self.inner.update(data)

    monkeypatch.setattr(hashlib, "blake2b", Hash)
    monkeypatch.setattr(np, "lexsort", lambda keys: sorts.append(len(keys[0])) or lexsort(keys))
    prompt = chat(ensemble, TALK[:2] * 8 + TALK[:1])
    Echo(prompt, list(ensemble.models), ensemble.first)
    PromptScoring.of(prompt, list(ensemble.models), Weighting(), PrefixScores(), pivot="lingvo")
    tokens = sum(map(len, prompt.ids.values()))
    assert sum(sorts) <= 2 * tokens
    assert 4 * tokens / 2 < sum(hashed) < 16 * tokens


@given(
    st.lists(st.integers(1, 9), max_size=60).map(np.array), st.integers(1, 80), st.sampled_from(["evenly", "last"])
)
def test_the_choice_of_units_keeps_to_its_limit(widths, limit, spread):
    widths = widths.astype(np.int64)
    chosen = choose(widths, limit, spread)
    assert (np.diff(chosen) > 0).all()
    assert widths[chosen].sum() <= limit
    if widths.sum() <= limit:
        assert len(chosen) == len(widths)
    if spread == "last" and len(chosen):
        assert chosen[-1] == len(widths) - 1
    if spread == "evenly" and len(widths) >= 10 and widths.max(initial=0) * 4 <= limit:
        assert chosen[0] <= len(widths) // 2 <= chosen[-1]


def test_kept_scores_are_bounded():
    def scores(size):
        return TextScores({"a": np.zeros(size // 8)}, {}, {}, {})

    memory = PrefixScores(limit=5 * scores(400).size // 2)
    for number in range(5):
        memory.put(bytes([number]), scores(400))
        memory.get(b"\0")
    assert [memory.get(bytes([number])) is not None for number in range(5)] == [True, False, False, False, True]
    memory.put(b"huge", scores(4000))
    assert memory.get(b"huge") is None


def test_scores_of_next_to_nothing_take_room_too():
    memory = PrefixScores(limit=10_000)
    for number in range(1000):
        memory.put(number.to_bytes(2), TextScores({}, {}, {}, {}))
    assert sum(memory.get(number.to_bytes(2)) is not None for number in range(1000)) < 10


@pytest.mark.parametrize("spread", ["evenly", "last"])
def test_a_long_text_before_does_not_crowd_out_what_is_asked(tokenizers, run, spread):
    """Nor is a question that was scored nowhere taken for known the next time."""
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    system = {"role": "system", "content": " ".join(["The dog is lazy and the fox is quick."] * 30)}
    asked = {"role": "user", "content": "How many apples are there in all?"}
    fusion = weighted("packllm-sim", positions=12, spread=spread)
    alone = report_of(running, chat(running.ensemble, [asked]), fusion)
    first = report_of(running, chat(running.ensemble, [system, asked]), fusion)
    again = report_of(running, chat(running.ensemble, [system, asked]), fusion)
    assert first.tokens <= 12
    assert again.weights == first.weights
    other = run(toy_ensemble(tokenizers, pivot="lingvo"))
    without = [system, asked | {"content": "Where is the dog?"}]
    assert report_of(other, chat(other.ensemble, without), fusion).weights != first.weights
    assert alone.tokens > 0


LONG_TALK = [
    {"role": ("user", "assistant")[number % 2], "content": f"{number} apples, and the fox is quick. " * 4}
    for number in range(9)
]


def told(running, messages, method="packllm-sim", **options):
    report = report_of(running, chat(running.ensemble, messages), weighted(method, positions=12, **options))
    return report.tokens, report.weights


@pytest.mark.parametrize("spread", ["evenly", "last"])
def test_a_prompt_that_is_repeated_has_the_same_weights(tokenizers, run, spread):
    """Texts that had no positions get none the next time either, unless they are what is asked then."""
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    first = told(running, LONG_TALK, spread=spread)
    assert [told(running, LONG_TALK, spread=spread) for _ in range(2)] == [first] * 2
    shorter = told(run(toy_ensemble(tokenizers, pivot="lingvo")), LONG_TALK[:1], spread=spread)
    assert told(running, LONG_TALK[:1], spread=spread) == shorter


def test_scores_are_kept_for_those_who_would_score_alike(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    fresh = told(run(toy_ensemble(tokenizers, pivot="lingvo")), LONG_TALK, history="last")
    told(running, LONG_TALK)
    assert told(running, LONG_TALK, history="last") == fresh
    other = toy_ensemble(tokenizers, pivot="abacus")
    fresh = told(run(other), LONG_TALK)
    around = build_ensemble("around", running.ensemble.models, "abacus")
    assert told(replace(running, ensemble=around), LONG_TALK) == fresh


@given(st.lists(st.integers(0, 60), max_size=40), st.integers(2, 80), st.sampled_from(["evenly", "last"]))
def test_texts_share_all_of_the_limit_and_the_newest_has_most_of_it(sizes, limit, spread):
    quotas = shares(sizes, limit, spread)
    assert all(quota <= size for quota, size in zip(quotas, sizes, strict=True))
    assert sum(quotas) == min(limit, sum(sizes))
    if sizes and sizes[-1]:
        assert quotas[-1] >= min(sizes[-1], limit / 2)


def test_many_texts_before_leave_the_question_half():
    assert shares([60] * 29 + [15], 24, "evenly")[-3:] == [3, 6, 12]
    assert shares([2, 100], 24, "evenly") == [2, 22]
    assert shares([500, 15], 24, "evenly") == [12, 12]
    assert shares([0, 100], 24, "evenly") == [0, 24]
