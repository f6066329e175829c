from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.vocab_map import VocabMap
from fusion.arithmetic import combine
from fusion.assembly.ensembles import build_ensemble
from fusion.core import Capacity
from fusion.ensemble import Model
from fusion.loop.fuser import Fuser
from fusion.options import FusionParams, Mask
from fusion.sequence.looks import take_look
from fusion.sequence.summing import Sum, kept_by, named_logs
from tests.support.reference import shared
from tests.support.toy_fuser import Running
from tests.support.toy_members import ToyMember

ROOMY = Capacity(context=1024, cache_tokens=100_000, sequences=64)
UNLIKE = ("divisor", "elementwise", "temperature_on", "mask_renormalises")


class IdTokenizer:
    """A token per id, each of one character, so that any stored logits can be served."""

    kind = "byte-level"
    chat_lead = b""
    fingerprint = "ids"

    def __init__(self, size):
        self.vocabulary_size = size
        self.surfaces = [*(chr(33 + i).encode() for i in range(size - 1)), None]
        self.special_ids = frozenset({size - 1})

    def encode(self, text, *, add_special_tokens, limit=None, room=None):
        return [ord(one) - 33 for one in text]


class Replayed(ToyMember):
    """Answers step t with the stored logits of that step, whatever the text."""

    def __init__(self, name, logits, k):
        row = logits.astype(np.float64)
        logs = row - row.max(1, keepdims=True)
        self.rows = (logs - np.log(np.exp(logs).sum(1, keepdims=True))).astype(np.float32)
        super().__init__(
            name, lambda tokens: self.rows[min(len(tokens) - 1, len(self.rows) - 1)], logits.shape[1], ROOMY, k
        )


def served(logits, weights, mask, *, temperature, k=10_000):
    """The distributions of every round of a sequence over members with these logits [S,M,V], and its tokens."""
    names = [f"m{i}" for i in range(logits.shape[1])]
    tokenizer = IdTokenizer(logits.shape[2])
    end = logits.shape[2] - 1
    models = {n: Model(Replayed(n, logits[:, i], k), tokenizer, (end,), n) for i, n in enumerate(names)}
    leader = names[0 if mask is None else mask[1]]
    ensemble = build_ensemble("sum", models, leader)
    option = Mask(off=True) if mask is None else Mask(**{mask[0]: mask[2]})
    fusion = FusionParams(
        combine="arithmetic", weights=dict(zip(names, map(float, weights), strict=True)), mask=option, report=True
    )
    fuser = Fuser({name: model.member for name, model in models.items()})
    fuser.start()
    try:
        listener = Running(fuser, ensemble).submit(
            ensemble.encode_text("!"),
            fusion,
            max_tokens=len(logits),
            ignore_eos=True,
            logprobs=logits.shape[2],
            temperature=temperature,
        )
        listener.wait()
        assert listener.last.error is None
        rows = np.zeros((len(logits), logits.shape[2]))
        tokens = [token for update in listener.updates for token in update.tokens]
        for row, token in zip(rows, tokens, strict=True):
            for one in token.top:
                row[one.id] = np.exp(one.logprob)
        return rows, [token.chosen.id for token in tokens], listener.last.rounds
    finally:
        fuser.stop()


def golden():
    path = shared("golden", "arithmetic.json")
    spec = json.loads(path.read_text())
    plain = [s for s in spec["scenarios"] if s["combine"] == "log" and not any(s.get(name) for name in UNLIKE)]
    return [s for s in plain if not s["quirk"]], np.load(path.with_suffix(".npz"))


def mask_of(spec):
    mask = spec.get("mask")
    if mask is None:
        return None
    return (
        mask["kind"],
        mask["member"],
        mask[{"plausibility": "alpha", "nucleus": "p", "top_k": "k"}[mask["kind"]]],
    )


def test_served_rounds_are_the_authors_distributions():
    """Of the tokens but the end, which may not come here, and is as if no member had ever had it."""
    scenarios, arrays = golden()
    assert len(scenarios) >= 5
    for spec in scenarios:
        logits = arrays[f"s{spec['index']}_logits"]
        end = logits.shape[2] - 1
        expected = combine(np.delete(logits, end, axis=2), spec["weights"], mask=mask_of(spec))
        rows, tokens, _ = served(logits, spec["weights"], mask_of(spec), temperature=0.0)
        assert tokens == expected.argmax(1).tolist(), spec["name"]
        np.testing.assert_allclose(rows[:, :end], expected, rtol=0, atol=1e-5, err_msg=spec["name"])
        assert not rows[:, end].any(), spec["name"]


rng = np.random.default_rng(3)
LOGITS = (rng.normal(size=(5, 3, 203)) * 1.5).astype(np.float32)


@pytest.mark.parametrize("mask", [("plausibility", 0, 0.3), ("nucleus", 1, 0.2), ("top_k", 0, 12)])
def test_with_the_k_best_only_the_sum_is_exact_as_long_as_they_cover_the_mask(mask):
    weights = [1.5, 0.5, -0.8]
    rows, _, reports = served(LOGITS, weights, mask, temperature=0.0, k=60)
    end = LOGITS.shape[2] - 1
    barred = LOGITS.astype(np.float64)
    logs = barred - np.log(np.exp(barred).sum(2, keepdims=True))
    own = np.exp(logs[:, mask[1]])
    allowed = np.arange(end + 1) != end
    for row, report, step, leader in zip(rows, reports, logs, own, strict=True):
        kept = kept_by(Mask(**{mask[0]: mask[2]}), leader, allowed)
        score = np.where(kept, (np.array(weights)[:, None] * step).sum(0), -np.inf)
        expected = np.exp(score - score.max())
        np.testing.assert_allclose(row, expected / expected.sum(), atol=1e-5)
        assert report.cut is None


def test_a_mask_that_the_k_best_do_not_reach_is_reported_with_the_mass_beyond():
    _, _, reports = served(LOGITS, [1, 0, -0.5], ("nucleus", 0, 0.95), temperature=0.0, k=5)
    best = np.sort(np.exp(LOGITS[0, 0]) / np.exp(LOGITS[0, 0]).sum())[-5:]
    assert reports[0].cut == pytest.approx(1 - best.sum(), abs=1e-5)


@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=30), st.floats(0, 1), st.integers(1, 40), st.data())
def test_masks_keep_what_the_whole_row_would_with_the_rest_excluded(values, share, k, data):
    row = np.array(values) / sum(values)
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row))))
    if not allowed.any():
        allowed[0] = True
    logits = np.log(np.where(allowed, row, 1e-300))[None, None]
    for mask, one in ((("plausibility", 0, share), Mask(plausibility=share)), (("top_k", 0, k), Mask(top_k=k))):
        expected = (combine(logits, [1.0], mask=mask)[0] > 1e-250) & allowed
        # A probability that is the bound itself falls on either side, by the rounding of its logarithm.
        clear = ~np.isclose(row, share * row[allowed].max(), rtol=1e-12, atol=0) | (mask[0] != "plausibility")
        np.testing.assert_array_equal(kept_by(one, row, allowed)[clear], expected[clear])


def test_the_weight_of_a_term_that_a_member_cannot_say_is_the_pivots_for_that_token():
    tokens = np.array([1, 4, 6])
    total = Sum("a", tokens, {"a": 1.5, "b": -0.5}, None)
    total.logs = {"a": np.log([0.5, 0.3, 0.2]), "b": np.array([np.log(0.25), np.nan, -np.inf])}
    expected = np.array([0.5**1.5 / 0.25**0.5, 0.3, 0.0])
    np.testing.assert_allclose(total.distribution(), expected / expected.sum())


def test_a_word_that_a_member_does_not_have_is_no_prize():
    """Log-probability 0 in place of its term would be certainty."""
    total = Sum("a", np.array([1, 2]), {"a": 0.5, "b": 0.5}, None)
    total.logs = {"a": np.log([0.15, 0.37]), "b": np.array([np.nan, np.log(0.37)])}
    np.testing.assert_allclose(total.distribution(), np.array([0.15, 0.37]) / 0.52)


@pytest.mark.parametrize("end", [0.0, 1.2e-7])
def test_a_nucleus_is_of_the_rest_where_an_end_that_may_not_come_is_all_but_certain(end):
    """The rest is less than the rounding of float32."""
    rest = np.array([0.5, 0.3, 0.1, 0.05, 0.03, 0.02]) * 1e-7
    allowed = np.array([False, *[True] * 6])
    kept = kept_by(Mask(nucleus=0.6), np.array([np.exp(end), *rest]), allowed)
    np.testing.assert_array_equal(np.flatnonzero(kept), [1, 2])


def test_what_nobody_can_say_does_not_win():
    """No term would be a log-probability of 0, which is certainty."""
    total = Sum("pivot", np.array([1, 2, 3]), {"a": 1.0, "b": -0.5}, None)
    total.logs = {
        "pivot": np.log([0.2, 0.5, 0.3]),
        "a": np.array([np.log(0.4), np.nan, np.nan]),
        "b": np.array([np.nan, np.nan, np.log(0.1)]),
    }
    np.testing.assert_array_equal(total.distribution(), [1.0, 0.0, 0.0])
    total.logs["a"][0] = np.nan
    np.testing.assert_allclose(total.distribution(), [0.2, 0.5, 0.3])


def test_no_infinity_meets_another():
    total = Sum("a", np.array([1, 2]), {"a": 1.0, "b": -1.0}, None)
    total.logs = {"a": np.array([-np.inf, 0.0]), "b": np.array([-np.inf, -1.0])}
    np.testing.assert_array_equal(total.distribution(), [0.0, 1.0])
    total.logs["a"] = total.logs["b"] = np.array([-np.inf, -np.inf])
    assert np.isfinite(total.distribution()).all()


def test_mapped_rows_are_normalised_and_sources_are_added_up():
    # sources 0 and 1 both go to target 5, source 2 to target 7 by half, source 3 nowhere
    vocab_map = VocabMap(np.array([[5], [5], [7], [-1]]), np.array([[1.0], [1.0], [0.5], [0.0]]), 9)
    np.testing.assert_array_equal(vocab_map.sources_of(np.array([5, 8])), [0, 1])
    p = np.array([0.2, 0.1, 0.4, 0.3])
    listed = np.arange(4, dtype=np.int32)[None], np.log(p)[None].astype(np.float32)
    ids = vocab_map.sources_of(np.array([5, 7, 8]))
    logs = named_logs(np.array([5, 7, 8]), ids, np.log(p[ids]).astype(np.float32), vocab_map, listed)
    np.testing.assert_allclose(np.exp(logs[:2]), [0.6, 0.4], rtol=1e-6)
    assert np.isnan(logs[2])


def test_an_answer_that_nobody_waits_for_any_more_is_dropped():
    """A member has left meanwhile, so the pivot decided alone, and perhaps the next round has begun."""
    take_look(SimpleNamespace(sum=None), "late", np.zeros(2))
    found = Sum("pivot", np.arange(2), {"pivot": 1.0, "late": -1.0}, None)
    found.asked, found.awaited = {"late": np.arange(2)}, {"late"}
    found.lead_alone()
    take_look(SimpleNamespace(sum=found), "late", np.zeros(2))
    assert found.logs == {}


@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=12), st.data())
def test_a_nucleus_of_what_may_come_is_the_same_however_the_list_was_made(sizes, data):
    """Over all tokens, some of them barred, and over a list of the rest with their probabilities among all."""
    probabilities = np.array(sizes) / np.sum(sizes)
    barred = data.draw(st.sets(st.integers(0, len(sizes) - 1), max_size=len(sizes) - 1))
    allowed = ~np.isin(np.arange(len(sizes)), list(barred))
    mask = Mask(nucleus=0.7)
    whole = kept_by(mask, probabilities, allowed)
    short = kept_by(mask, probabilities[allowed], np.ones(allowed.sum(), np.bool_), limited=True)
    left = probabilities[allowed]
    margins = np.abs(np.cumsum(np.sort(left)[::-1]) / left.sum() - 0.7)
    if margins.min() > 1e-9:
        assert whole[allowed].tolist() == short.tolist()


def test_a_sum_over_nothing_is_nothing():
    total = Sum("a", np.array([], np.int64), {"a": 1.0}, None)
    total.logs = {"a": np.array([])}
    assert total.distribution().size == 0
