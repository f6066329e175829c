"""Candidates: every pivot once with each alignment, and options that the fuser takes."""

from __future__ import annotations

from fusion.calibrate.candidates import (
    AS_CONFIGURED,
    PRUNED,
    Candidate,
    other_weights,
    sums_worth_trying,
    with_learned,
    worth_trying,
)
from fusion.options import Contrast, FusionParams, Guidance, Weighting


def test_every_pivot_alignment_and_combination_is_tried_and_each_once():
    found = worth_trying(["a", "b", "c"], ["spelled", "exact"], ["a", "b", "c"])
    assert len(set(found)) == len(found) == len({one.name for one in found})
    assert {(one.pivot, one.alignment, one.combine) for one in found} == {
        (pivot, alignment, combine)
        for pivot in "abc"
        for alignment in ("spelled", "exact")
        for combine in ("mixture", "product")
    }
    assert {one.members for one in found} == {("a", "b", "c"), ("a", "b"), ("a", "c"), ("b", "c")}
    assert all(one.pivot in one.members for one in found)


def test_options_are_the_configured_ones_but_for_what_is_tried():
    configured = FusionParams(weights={"a": 0.9, "b": 0.1}, filter_top=3, weighting=Weighting(positions=9))
    both = ("a", "b")
    uniform = Candidate(both, "a", "exact", "product").fusion(configured)
    assert (uniform.weights, uniform.combine, uniform.filter_top) == (None, "product", 3)
    opt = Candidate(both, "a", "exact", "mixture", "packllm-opt").fusion(configured)
    assert (opt.weighting.method, opt.weighting.positions) == ("packllm-opt", 9)
    own = Candidate(both, "a", "exact", "mixture", AS_CONFIGURED).fusion(configured)
    assert own.weights == configured.weights
    assert Candidate(("a",), "a").alone


def test_learned_weights_are_tried_with_several_thresholds_and_as_a_mixture():
    own = Candidate(("a", "b"), "a", "spelled", "mixture", AS_CONFIGURED)
    found = with_learned(("a", "b"), "spelled", "product", own)
    learned = [(one.pivot, one.combine, one.prune) for one in found if one.weights == "learned"]
    assert learned == [("auto", combine, prune) for combine in ("product", "mixture") for prune in PRUNED]
    assert len(with_learned(("a", "b"), "spelled", "mixture", own)) == len(found) - len(PRUNED)
    fusion = found[-1].fusion(FusionParams())
    assert (fusion.weighting.method, fusion.weighting.prune, fusion.combine) == ("learned", 1.0, "mixture")


def test_weights_are_compared_with_packllms_centred_ones_and_confidence():
    equal = Candidate(("a", "b"), "a", "spelled")
    plain, *_, centred, sure = other_weights(equal, {"b": {"a": 9.0, "b": 8.0}, equal.pivot: {"a": 1.0, "b": 2.5}})
    assert plain.fusion(FusionParams()).weighting.offsets is None
    assert centred.fusion(FusionParams()).weighting.offsets == {"a": 1.0, "b": 2.5}
    assert "centred packllm-opt" in centred.name
    assert (sure.fusion(FusionParams()).confidence, sure.fusion(FusionParams()).weights) == (1.0, None)
    assert [one.weights for one in other_weights(equal, {})] == ["packllm-sim", "packllm-opt", "uniform"]


def test_sums_are_tried_at_other_strengths_and_beside_an_equal_mixture():
    configured = FusionParams(contrast=Contrast(amateur="b", alpha=0.2, beta=0.5))
    own = Candidate(("a", "b"), "a", "spelled", "mixture", AS_CONFIGURED)
    uniform = Candidate(("a", "b"), "a", "spelled")
    found = sums_worth_trying(configured, own, uniform)
    assert [one.strength for one in found] == [None, 0.25, 1.0, None]
    assert (found[0], found[-1]) == (own, uniform)
    assert found[1].fusion(configured).contrast == Contrast(amateur="b", alpha=0.2, beta=0.25)
    assert len({one.name for one in found}) == 4


def test_a_guided_model_is_compared_with_itself():
    configured = FusionParams(guidance=Guidance(scale=1.5, negative="Be rude."))
    own = Candidate(("a",), "a", "spelled", "mixture", AS_CONFIGURED)
    found = sums_worth_trying(configured, own, Candidate(("a",), "a", "spelled"))
    assert [one.strength for one in found] == [None, 1.25, 2.0]
    assert not any(one.alone for one in found)
    assert found[1].fusion(configured).guidance == Guidance(scale=1.25, negative="Be rude.")


def test_views_of_one_model_have_one_pivot_to_try():
    found = worth_trying(["a", "b", "c"], ["spelled"], ["b"])
    assert {one.pivot for one in found if len(one.members) == 3} == {"b"}
    assert all(one.pivot in one.members for one in found)
