"""Multiple choice by likelihood: what counts are the tokens of the choice, whatever stands before them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusion.calibrate.asking import Form, ask, choose
from fusion.ensemble import Ensemble
from fusion.options import Contrast, FusionParams, Mask
from fusion.views import ModelView
from tests.support.toy_fuser import toy_ensemble

CHOICES = ("seven", "a number that is larger than six")


def counted(tokenizers, run, monkeypatch, view: ModelView | None = None) -> list[int]:
    """How many tokens count for each choice, of an ensemble whose members are all shown so."""
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    ensemble = running.ensemble
    if view is not None:
        models = {name: replace(model, view=replace(view, name=name)) for name, model in ensemble.models.items()}
        ensemble = replace(ensemble, models=models, views={"lingvo": replace(ensemble.first, models=models)})
    seen = []

    def after(tokens, ends, asked):
        seen.append(sum(end > asked for end in ends[: len(tokens)]))
        return float(-seen[-1])

    monkeypatch.setattr("fusion.calibrate.asking._after", after)
    reply = choose(running.fuser, ensemble, FusionParams(), "What is 3 + 4?", CHOICES, Form())
    assert reply.error is None
    return seen


@pytest.mark.parametrize(
    "view",
    [ModelView(system="Be brief, be polite, and be right."), ModelView(context="The shop opens at nine.")],
    ids=["system", "context"],
)
def test_a_view_counts_the_tokens_that_its_model_would(tokenizers, run, monkeypatch, view):
    plain = counted(tokenizers, run, monkeypatch)
    assert 0 < plain[0] < plain[1]
    assert counted(tokenizers, run, monkeypatch, view) == plain


def test_choices_by_a_sum_are_compared_without_its_mask(tokenizers, run):
    """Under the mask most texts have no probability at all, and the first one listed would win."""
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    asked = running.fuser, running.ensemble
    fusion = FusionParams(contrast=Contrast("abacus"))
    off = choose(*asked, replace(fusion, mask=Mask(off=True)), "What is 3 + 4?", CHOICES, Form()).text
    for choices in (CHOICES, CHOICES[::-1]):
        reply = choose(*asked, fusion, "What is 3 + 4?", choices, Form())
        assert reply.error is None
        assert reply.text == off


def test_a_context_stands_where_the_ensemble_says(tokenizers, run, monkeypatch):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    places = []

    def encode(ensemble, messages, *, place, **options):
        places.append(place)
        return original(ensemble, messages, place=place, **options)

    original = Ensemble.encode_chat
    monkeypatch.setattr(Ensemble, "encode_chat", encode)
    for place in ("user", "system"):
        fusion = FusionParams(context_place=place)
        assert ask(running.fuser, running.ensemble, fusion, ["Hi"], Form(max_tokens=2))[0].error is None
    assert places == ["user", "system"]
