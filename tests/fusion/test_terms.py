from __future__ import annotations

import pytest

from fusion.options import Contrast, FusionParams, Guidance, Mask, Proxy, Weighting
from fusion.terms import objections, terms_of

MEMBERS = ("ada", "ben", "cat")


def test_nothing_is_added_up_where_it_is_not_asked_for():
    assert terms_of(FusionParams(), MEMBERS) is None


def test_weights_are_taken_as_given_and_those_of_0_left_out():
    terms = terms_of(FusionParams(combine="arithmetic", weights={"ada": 2.0, "ben": -1.5, "cat": 0.0}), MEMBERS)
    assert terms.weights == {"ada": 2.0, "ben": -1.5}
    assert terms.mask == Mask(plausibility=0.1)


def test_named_sums_are_their_papers():
    contrast = terms_of(FusionParams(contrast=Contrast("cat", alpha=0.2, beta=0.5)), MEMBERS)
    assert contrast.weights == {"ada": 0.75, "ben": 0.75, "cat": -0.5}
    assert contrast.mask == Mask(plausibility=0.2)
    proxy = terms_of(FusionParams(proxy=Proxy("ben", "cat", 2.0), mask=Mask(nucleus=0.9)), MEMBERS)
    assert proxy.weights == {"ada": 1.0, "ben": 2.0, "cat": -2.0}
    assert proxy.mask == Mask(nucleus=0.9)
    pair = ("ada", "ada/negative")
    guided = terms_of(FusionParams(guidance=Guidance(1.5, negative="x"), mask=Mask(off=True)), pair)
    assert guided.weights == {"ada": 1.5, "ada/negative": -0.5}
    assert guided.mask is None


SUM = {"combine": "arithmetic", "weights": {"ada": 1.0, "ben": -1.0}}
GUIDED = {"guidance": Guidance(1.5, negative="x")}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"combine": "arithmetic", "weights": {"ada": -1.0, "ben": 0.0}}, "weights"),
        ({"combine": "arithmetic", "weights": {"ada": float("nan"), "ben": 1.0}}, "weights"),
        ({"combine": "arithmetic", "weights": {"ada": 1e308, "ben": -1e308}}, "weights"),
        ({"contrast": Contrast("cat"), "weights": {"ada": 0.0, "ben": 0.0, "cat": 1.0}}, "weights"),
        ({"proxy": Proxy("ben", "cat"), "weights": {"ada": 0.0, "ben": 1.0, "cat": 0.0}}, "weights"),
        (SUM | {"filter_top": 3}, "filter_top"),
        (SUM | {"guard": True}, "guard"),
        (SUM | {"gate": "confident"}, "gate"),
        (GUIDED | {"confidence": 1.0}, "confidence"),
        (SUM | {"draft": "auto"}, "draft"),
        (SUM | {"weighting": Weighting("top1")}, "weighting"),
        (SUM | {"mask": Mask(plausibility=0.1, nucleus=0.2)}, "mask"),
        ({"mask": Mask(top_k=3)}, "mask"),
        ({"contrast": Contrast("dan")}, "contrast.amateur"),
        ({"contrast": Contrast("ada")}, "contrast.amateur"),
        ({"proxy": Proxy("ben", "ben")}, "proxy.untuned"),
        ({"proxy": Proxy("ben", "dan")}, "proxy.untuned"),
        ({"contrast": Contrast("ben"), **GUIDED}, "guidance"),
        ({"guidance": Guidance(1.5)}, "guidance"),
        ({"guidance": Guidance(1.5, negative="x", without_context=True)}, "guidance"),
        ({"guidance": Guidance(1.5, negative="")}, "guidance.negative"),
        (GUIDED | {"weights": {"ada": 1.0, "ben": -1.0, "cat": 1.0}}, "weights.ben"),
    ],
)
def test_what_does_not_go_together_is_named(options, field):
    assert next(objections(FusionParams(**options), MEMBERS, "ada"))[0] == field


@pytest.mark.parametrize("options", [SUM, GUIDED, {"contrast": Contrast("ben")}, SUM | {"draft": "ngram"}, {}])
def test_what_goes_together_is_not_objected_to(options):
    assert not list(objections(FusionParams(**options), MEMBERS, "ada"))


def test_a_sum_takes_a_fixed_pivot():
    assert next(objections(FusionParams(**SUM), MEMBERS, None))[0] == "combine"
