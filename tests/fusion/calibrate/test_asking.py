"""Multiple choice by likelihood: what counts are the tokens of the choice, whatever stands before them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusion.calibrate.asking import Form, choose
from fusion.options import FusionParams
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
