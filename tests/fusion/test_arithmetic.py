from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from fusion.arithmetic import combine
from tests.support.reference import shared

UNLIKE = ("divisor", "elementwise", "temperature_on", "mask_renormalises")


def golden():
    path = shared("golden", "arithmetic.json")
    spec = json.loads(path.read_text())
    plain = [s for s in spec["scenarios"] if s["combine"] == "log" and not any(s.get(name) for name in UNLIKE)]
    return spec["temperatures"], [s for s in plain if not s["quirk"]], np.load(path.with_suffix(".npz"))


def given_mask(spec):
    mask = spec.get("mask")
    if mask is None:
        return None
    value = {"plausibility": "alpha", "nucleus": "p", "top_k": "k"}[mask["kind"]]
    return mask["kind"], mask["member"], mask[value]


def test_the_authors_distributions_are_met():
    temperatures, scenarios, arrays = golden()
    assert len(scenarios) >= 5
    assert {(s.get("mask") or {"kind": None})["kind"] for s in scenarios} >= {None, "plausibility"}
    for spec in scenarios:
        logits = arrays[f"s{spec['index']}_logits"]
        for t, temperature in enumerate(temperatures):
            got = combine(logits, spec["weights"], mask=given_mask(spec), temperature=temperature)
            assert got.dtype == np.float64
            expected = arrays[f"s{spec['index']}_probs"][t]
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12, err_msg=spec["name"])
            np.testing.assert_array_equal(got.argmax(1), arrays[f"s{spec['index']}_greedy"][t])


logits = np.random.default_rng(0).normal(size=(4, 3, 25)).astype(np.float32) * 3


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0.2, 3))
def test_a_constant_added_to_a_member_changes_nothing(weight, constant, temperature):
    moved = logits.copy()
    moved[:, 1] += np.float32(constant)
    ours = combine(logits, [1, weight, -0.5], temperature=temperature)
    np.testing.assert_allclose(combine(moved, [1, weight, -0.5], temperature=temperature), ours, atol=1e-5)
    np.testing.assert_allclose(ours.sum(1), 1)


def test_one_member_is_its_own_softmax():
    np.testing.assert_allclose(
        combine(logits, [0, 1, 0], temperature=0.7), softmax(logits[:, 1] / np.float64(0.7), 1)
    )


def test_the_masks_keep_what_their_definitions_say():
    own = softmax(logits[:, 2].astype(np.float64), axis=1)
    weights = [1, -0.5, 0.5]
    kept = combine(logits, weights, mask=("plausibility", 2, 0.1)) > 0
    np.testing.assert_array_equal(kept, own >= 0.1 * own.max(1, keepdims=True))
    for k in (1, 7, 25, 99):
        assert ((combine(logits, weights, mask=("top_k", 2, k)) > 0).sum(1) == min(k, 25)).all()
    for p in (0.0, 0.5, 0.9):
        kept = combine(logits, weights, mask=("nucleus", 2, p)) > 0
        for row, chosen in zip(own, kept, strict=True):
            order = np.argsort(-row)
            before = np.concatenate([[0], np.cumsum(row[order])[:-1]])
            np.testing.assert_array_equal(np.flatnonzero(chosen), np.sort(order[before <= p]))


@pytest.mark.parametrize("mask", [("nucleus", 0, 1.0), ("plausibility", 0, 0.0), ("top_k", 0, 25)])
def test_a_mask_that_keeps_everything_is_no_mask(mask):
    np.testing.assert_array_equal(combine(logits, [1, 0.5, -0.5], mask=mask), combine(logits, [1, 0.5, -0.5]))


def test_equal_tokens_at_the_limit_are_kept_from_the_lowest_id():
    got = combine(np.zeros((1, 1, 4)), [1], mask=("top_k", 0, 2))
    np.testing.assert_array_equal(got, [[0.5, 0.5, 0, 0]])


@pytest.mark.parametrize("member", [0, 1])
def test_what_a_member_excludes_never_wins_whatever_its_sign(member):
    cut = logits.copy()
    cut[:, member, :5] = -np.inf
    got = combine(cut, [1, -1, 0.5], mask=("top_k", 2, 25))
    assert np.isfinite(got).all()
    assert not got[:, :5].any()
    np.testing.assert_array_equal(combine(cut, [float(member == 1), float(member == 0), 1]) > 0, True)


def test_inputs_are_left_unchanged():
    before = logits.copy()
    logits.setflags(write=False)
    combine(logits, [1, -1, 0], mask=("nucleus", 0, 0.5), temperature=2)
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize(
    ("weights", "options", "sentence"),
    [
        ([-1, 0, 0], {}, "at least one weight must be positive"),
        ([1, np.nan, 0], {}, "finite"),
        ([1, np.inf, 0], {}, "finite"),
        ([1, 0], {}, r"\[S,M,V\] and weights"),
        ([1, 0, 0], {"temperature": 0}, "temperature must be"),
        ([1, 0, 0], {"temperature": -1}, "temperature must be"),
        ([1, 0, 0], {"mask": ("plausibility", 0, 1.5)}, "alpha must lie in"),
        ([1, 0, 0], {"mask": ("nucleus", 0, -0.1)}, "p must lie in"),
        ([1, 0, 0], {"mask": ("nucleus", 0, np.nan)}, "p must lie in"),
        ([1, 0, 0], {"mask": ("top_k", 0, 0)}, "k must be"),
        ([1, 0, 0], {"mask": ("top_k", 3, 1)}, "3 members"),
        ([1, 0, 0], {"mask": ("typical", 0, 0.5)}, "mask must be"),
    ],
)
def test_a_sum_that_makes_no_sense_is_refused(weights, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        combine(logits, weights, **options)


def test_a_step_without_a_token_is_refused():
    cut = logits.copy()
    cut[0, 0, :20], cut[0, 1, 20:] = -np.inf, -np.inf
    with pytest.raises(ValueError, match="no token is left"):
        combine(cut, [1, 1, 1])
    cut[0, 0] = -np.inf
    with pytest.raises(ValueError, match="at least one token"):
        combine(cut, [1, 1, 1])
