"""Drafts change no answer: the same tokens, log-probabilities and report as in rounds of one token."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from alignment.errors import InvalidRequestError
from fusion.assembly.ensembles import build_ensemble
from fusion.loop.observer import Observer
from fusion.options import FusionParams, SamplingParams
from fusion.policy.lead import _shares
from fusion.policy.pace import Costs, Pace
from fusion.policy.policy import Ask, Policy
from fusion.policy.registry import policy_of, require_policy
from fusion.sequence.grammar import regex
from tests.support.constrained_prompts import constrained
from tests.support.drafted_answers import Scripted, accepted_drafts, guesses, same, says
from tests.support.reference import REAL, real_tokenizer
from tests.support.toy_fuser import toy_ensemble, toy_model

REPORT = FusionParams(report=True)


SAMPLING = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "seed": 7},
    "penalised": {
        "temperature": 0.8,
        "seed": 7,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.2,
        "top_p": 0.9,
    },
    "logprobs": {"logprobs": 3, "min_tokens": 20},
}


@pytest.mark.parametrize("kind", ["right", "wrong", "random"])
@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("pivot", ["lingvo", "almanac"])
def test_drafts_change_no_answer(tokenizers, run, monkeypatch, pivot, sampling, kind):
    running = run(toy_ensemble(tokenizers, pivot=pivot, defaults=REPORT))
    options = {"max_tokens": 40, **SAMPLING[sampling]}
    plain = running.submit(**options).wait()
    policy = Scripted(guesses(plain.ids, tokenizers[pivot].vocabulary_size)[kind])
    monkeypatch.setattr("fusion.sequence.sequence.policy_of", lambda fusion: policy)
    drafted = running.submit(**options).wait()
    same(drafted, plain)
    accepted = sum(accepted for _, accepted in policy.went)
    assert accepted == 0 if kind == "wrong" else accepted > 0
    assert not any(r.drafted for r in plain.last.rounds)
    assert sum(r.drafted for r in drafted.last.rounds) >= accepted


def test_a_draft_that_cannot_be_followed_changes_no_report(tokenizers, run, monkeypatch):
    running = run(toy_ensemble(tokenizers, pivot="almanac", defaults=replace(REPORT, unmapped="pivot")))
    plain = running.submit(max_tokens=40).wait()
    policy = Scripted(guesses(plain.ids, tokenizers["almanac"].vocabulary_size)["right"])
    monkeypatch.setattr("fusion.sequence.sequence.policy_of", lambda fusion: policy)
    drafted = running.submit(max_tokens=40).wait()
    begun = [r for r in drafted.last.rounds if not r.drafted and any(r.rolled_back.values())]
    assert begun, "the case: tokens are taken back where a draft begins that goes no further"
    same(drafted, plain)


@pytest.mark.parametrize("draft", ["ngram", "auto", "almanac", "lingvo"])
@pytest.mark.parametrize("sampling", SAMPLING)
def test_every_drafter_gives_the_answer_of_plain_rounds(tokenizers, run, monkeypatch, draft, sampling):
    """Of one sequence at a time, where all drafters draft, and of several that share their batches."""
    went = accepted_drafts(monkeypatch)
    running = run(toy_ensemble(tokenizers, pivot="lingvo", defaults=replace(REPORT, filter_top=3)))
    prompt = running.ensemble.encode_text("Hello")
    for model in running.ensemble.models.values():
        says("A rose is a rose is a rose, and naive noses know a rose is a rose. 12345 12345 12345", model, prompt)
    options = {"max_tokens": 40, **SAMPLING[sampling]}
    fusion = replace(REPORT, filter_top=3, draft=draft)
    plain = running.submit(prompt, **options).wait()
    same(running.submit(prompt, fusion, **options).wait(), plain)
    assert sum(went) > 0
    together = [running.submit(prompt, fusion if i % 2 else None, **options) for i in range(4)]
    for one in together:
        same(one.wait(), plain)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("pivot", ["llama-2", "qwen"])
def test_drafts_over_real_tokenizers(run, monkeypatch, pivot):
    """Text with digits, indentation and characters of several bytes, where spellings often change."""
    text = "for i in range(12345):\n        print('naïve 你好 🎉')  # Caféterias!!! --------"
    models = {name: toy_model(real_tokenizer(name), name, seed=0) for name in REAL}
    ensemble = build_ensemble("real", models, pivot, defaults=REPORT)
    target = real_tokenizer(pivot).encode(text, add_special_tokens=False)
    running = run(ensemble)
    prompt = ensemble.encode_text("Hello")
    for model in models.values():
        says(text, model, prompt)
    options = {"max_tokens": len(target), "temperature": 1.0, "seed": 3}
    plain = running.submit(prompt, **options).wait()
    for kind in ("right", "random", "wrong"):
        policy = Scripted(guesses(plain.ids, real_tokenizer(pivot).vocabulary_size)[kind])
        monkeypatch.setattr("fusion.sequence.sequence.policy_of", lambda fusion, policy=policy: policy)
        same(running.submit(prompt, **options).wait(), plain)
        assert (sum(accepted for _, accepted in policy.went) > 0) == (kind != "wrong")


def test_reports_and_the_observer_say_who_ran_and_what_was_drafted(tokenizers, run):
    class Watch(Observer):
        def __init__(self):
            self.drafts, self.policies = Counter(), Counter()

        def drafted(self, model, drafted, accepted, lost):
            self.drafts.update(drafted=drafted, accepted=accepted, lost=lost)

        def fused(self, done):
            self.policies.update(done.policies)

    running = run(toy_ensemble(tokenizers, pivot="lingvo", defaults=REPORT))
    running.fuser.observer = watch = Watch()
    prompt = running.ensemble.encode_text("Hello")
    for model in running.ensemble.models.values():
        says("A rose is a rose is a rose, and naive noses know a rose is a rose.", model, prompt)
    rounds = running.submit(prompt, replace(REPORT, draft="almanac"), max_tokens=30).wait().last.rounds
    running.fuser.stop()
    assert {r.ran for r in rounds} == {tuple(running.ensemble.models)}
    assert sum(r.drafted for r in rounds) == watch.drafts["accepted"] > 5
    assert watch.drafts["drafted"] >= watch.drafts["accepted"]
    assert watch.policies["member"] > watch.drafts["accepted"]  # and those that a draft ended with
    assert sum(watch.policies.values()) == 30
    assert watch.policies["always"] > 0


def test_a_draft_is_over_where_the_answer_is(tokenizers, run, monkeypatch):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    plain = running.submit(max_tokens=40).wait()
    seen = []
    running.fuser.observer.drafted = lambda *counts: seen.append(counts)
    policy = Scripted(guesses(plain.ids, 2560)["right"])
    monkeypatch.setattr("fusion.sequence.sequence.policy_of", lambda fusion: policy)
    stop = plain.text[len(plain.text) // 2 :][:3]
    running.submit(max_tokens=40, stop=(stop,)).wait()
    running.fuser.stop()
    assert sum(drafted for _, drafted, _, _ in seen) > 0
    assert all(accepted <= drafted for _, drafted, accepted, _ in seen)


ROSES = "A rose is a rose is a rose, and naive noses know a rose is a rose. 12345 12345 12345"


def drafted(member, members):
    """Says of each advance whether it is in a draft: one to check, or led on while nobody else is asked."""
    others = [other for other in members if other is not member]
    before, asked, alone = [], 0, 0

    def of(tokens):
        nonlocal before, asked, alone
        to_check = bool(before) and len(tokens) >= len(before) + 4
        now = sum(len(other.submitted) for other in others)
        alone = alone + 1 if now == asked else 0
        before, asked = tokens, now
        return to_check or alone >= 4

    return of


def test_a_member_that_fails_in_the_middle_of_a_draft_is_done_without(tokenizers, run):
    """The draft goes on, or is given up, and nothing of the answer is lost."""
    weights = {"lingvo": 0.5, "abacus": 0.1, "almanac": 0.4}  # the pivot is followed whoever is left
    for lost in ("almanac", "abacus"):
        running = run(toy_ensemble(tokenizers, pivot="lingvo", defaults=REPORT, on_member_failure="degrade"))
        prompt = running.ensemble.encode_text("Hello")
        for model in running.ensemble.models.values():
            says(ROSES, model, prompt)
        member = running.ensemble.models[lost].member
        member.fail_on = drafted(member, running.members())
        fusion = replace(REPORT, draft="almanac", weights=weights)
        listener = running.submit(prompt, fusion, max_tokens=40).wait()
        assert (listener.last.finish, len(listener.last.rounds)) == ("length", 40)
        assert set(listener.last.departed) == {lost}
        assert listener.text.startswith(ROSES[:60])


@pytest.mark.parametrize("draft", ["ngram", "auto"])
def test_nothing_comes_after_a_cancellation_in_the_middle_of_a_draft(tokenizers, run, draft):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    prompt = running.ensemble.encode_text("Hello")
    members, held = running.members(), threading.Event()

    def holds(member):
        is_drafted = drafted(member, members)

        def of(tokens):
            if is_drafted(tokens):
                member.hold = True
                held.set()
            return False

        member.fail_on = of

    for model in running.ensemble.models.values():
        says(ROSES, model, prompt)
        holds(model.member)
    listener = running.submit(prompt, fusion=FusionParams(draft=draft), max_tokens=100)
    assert held.wait(30), "a draft is under way, and not yet answered"
    running.fuser.cancel(listener.number)
    for member in members:
        member.fail_on = lambda tokens: False
        member.hold = False
        member.release()
    running.submit(max_tokens=2).wait()
    came = len(listener.updates)
    assert came < 40
    running.submit(max_tokens=2).wait()
    assert len(listener.updates) == came
    assert running.fuser.open_sequences() == 0


@pytest.mark.parametrize(
    ("fusion", "word"),
    [
        (FusionParams(draft="nobody"), "ngram, auto, or a member"),
        (FusionParams(draft="ngram", gate="confident"), "leave one out"),
        (FusionParams(gate="draw"), "renormalize: true"),
    ],
)
def test_what_has_no_policy_is_refused(tokenizers, run, fusion, word):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    with pytest.raises(InvalidRequestError, match=word):
        running.submit(fusion=fusion, temperature=1.0)


def test_gates_save_passes(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))

    def passes(fusion):
        for member in running.members():
            member.submitted.clear()
        listener = running.submit(fusion=fusion, max_tokens=30, temperature=1.0, seed=1).wait()
        assert len(listener.ids) == 30
        return sum(len(batch) for member in running.members() for batch in member.submitted)

    everyone = passes(FusionParams())
    assert passes(FusionParams(gate="confident", threshold=0.0)) == 30 + 2
    assert passes(FusionParams(gate="confident", threshold=1.0)) == everyone
    assert passes(FusionParams(gate="confident", threshold=0.0, margin=1.0)) == everyone
    assert 30 + 2 < passes(FusionParams(gate="confident", threshold=0.0, margin=0.1)) < everyone
    assert passes(FusionParams(gate="draw", renormalize=True)) < everyone / 2


def test_the_member_that_was_followed_leads_and_the_pivot_under_a_constraint(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    prompt = running.ensemble.encode_text("Hello")
    says("A rose is a rose is a rose, and a rose.", running.ensemble.models["almanac"], prompt)
    gate = FusionParams(gate="confident", threshold=0.5, report=True)
    ran = [r.ran for r in running.submit(prompt, gate, max_tokens=10).wait().last.rounds]
    assert len(ran[0]) == 3
    assert ran.count(("almanac",)) > 5
    says("A rose is a rose is a rose, and a rose.", running.ensemble.models["lingvo"], prompt)
    weightless = replace(gate, weights={"lingvo": 0.0, "abacus": 0.0, "almanac": 1.0})  # the pivot, as sure
    ran = [r.ran for r in running.submit(prompt, weightless, max_tokens=10).wait().last.rounds]
    assert ran.count(("almanac",)) > 5
    assert {one for one in ran if len(one) == 1} == {("almanac",)}
    limited = constrained(running, regex("[a-z ]{30}"))
    ran = [r.ran for r in running.submit(limited, gate, max_tokens=10).wait().last.rounds]
    assert {one for one in ran if len(one) == 1} <= {("lingvo",)}
    sure = replace(weightless, threshold=0.0)  # a pivot without a vote decides nothing, however sure it is
    ran = [r.ran for r in running.submit(limited, sure, max_tokens=10).wait().last.rounds]
    assert {len(one) for one in ran} == {2}, "the pivot, whose tokens are emitted, and the one that weighs"


def test_gates_run_where_a_constraint_admits_any_text(tokenizers, run):
    """As in every chat with a model that thinks between special tokens."""
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    mark = next(iter(running.ensemble.tokenizer.control_tokens(["<|im_start|>"])))
    thinks = constrained(running, marks=[mark])
    says("A rose is a rose is a rose, and a rose.", running.ensemble.models["almanac"], thinks)
    options = {"max_tokens": 10, "temperature": 1.0, "seed": 1}
    drawn = running.submit(thinks, FusionParams(gate="draw", renormalize=True, report=True), **options).wait().last
    assert drawn.error is None
    assert {len(round.ran) for round in drawn.rounds[1:]} == {1}, "all read the prompt"
    gate = FusionParams(gate="confident", threshold=0.5, report=True)
    ran = [round.ran for round in running.submit(thinks, gate, max_tokens=10).wait().last.rounds]
    assert ran.count(("almanac",)) > 5
    with pytest.raises(InvalidRequestError, match="no constraint on the answer"):
        running.submit(
            constrained(running, words=["rose"]), FusionParams(gate="draw", renormalize=True), **options
        )


def test_a_policy_that_fails_costs_its_own_sequence_alone(tokenizers, run, monkeypatch):
    class Broken(Policy):
        def ask(self, sequence):
            return Ask(("almanac",))

        def answered(self, sequence):
            raise RuntimeError("broken")

    monkeypatch.setattr(
        "fusion.sequence.sequence.policy_of", lambda fusion: Broken() if fusion.draft else policy_of(fusion)
    )
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    other = running.submit(max_tokens=30)
    broken = running.submit(fusion=FusionParams(draft="ngram"), max_tokens=30).wait()
    assert "see its log" in str(broken.last.error)
    assert len(other.wait().ids) == 30
    assert running.submit(max_tokens=3).wait().last.error is None


def test_a_view_costs_what_a_pass_of_its_model_takes():
    """Costs are kept by engine; a name that nothing is known of has an equal share of a round."""
    costs = Costs()
    costs.passes = {"small": 0.01, "large": 0.05}
    engines = {"tidy": "small", "large": "large", "new": "new"}
    sequence = SimpleNamespace(seats=engines, costs=costs, ensemble=SimpleNamespace(engine=engines.get))
    assert _shares(sequence, "tidy", 0.09) == (0.01, pytest.approx(0.08))
    assert _shares(sequence, "new", 0.09) == (pytest.approx(0.03), pytest.approx(0.06))


def test_drawing_one_member_a_token_is_refused_under_a_constraint():
    gate = FusionParams(gate="draw", renormalize=True)
    require_policy(gate, SamplingParams(8), ["a", "b"])
    with pytest.raises(InvalidRequestError, match="no constraint on the answer"):
        require_policy(gate, SamplingParams(8), ["a", "b"], limited=True)


def test_a_token_that_was_thought_of_and_not_drafted_is_no_miss():
    one, other = Pace(), Pace()
    one.checked(2, 2, [0.995] * 3)
    other.checked(2, 2, [0.995] * 2)
    assert one.chance(0.995) == other.chance(0.995)
