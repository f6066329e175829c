"""References as the members predict them, against a plain computation from the members' distributions."""

from __future__ import annotations

import numpy as np
import pytest

from alignment.text.boundaries import shared_boundaries
from fusion.calibrate.asking import Form
from fusion.calibrate.likelihood import LEAST, by_text, by_token
from fusion.calibrate.references import Question, score_references
from fusion.options import FusionParams
from tests.support.fuser_fixtures import run, tokenizers  # noqa: F401  (fixtures)
from tests.support.toy_fuser import toy_ensemble

FORM = Form("Say this: {prompt}\nAnswer:")
QUESTION = Question("the quiet farmer ran behind the forest.", "It is 19, after January.", "talk")


@pytest.fixture
def running(tokenizers, run):  # noqa: F811
    return run(toy_ensemble(tokenizers, pivot="lingvo"))


def test_every_stretch_of_the_reference_is_predicted_by_every_member(running):
    (scored,), failed = score_references(running.fuser, running.ensemble, [QUESTION], FORM)
    assert failed == []
    asked = "Say this: the quiet farmer ran behind the forest.\nAnswer:"
    prompt = running.ensemble.encode_text(f"{asked} {QUESTION.reference}", locate=True)
    before = shared_boundaries(prompt.located, 0)
    for column, (name, model) in enumerate(running.ensemble.models.items()):
        located = prompt.located[name]
        units = [
            sum(
                float(model.member.distribution(prompt.ids[name][: at + 1])[prompt.ids[name][at + 1]])
                for at in span
            )
            for span in (range(first, end) for first, end in zip(before[name][:-1], before[name][1:], strict=True))
            if located.ends[span[0]] >= len(asked)
        ]
        assert np.log(scored.units[:, column]) == pytest.approx(units, abs=1e-4), name
    assert len(scored.labels) == len(scored.units)
    assert scored.losses is not None


def test_a_chat_is_scored_as_well(running):
    (scored,), failed = score_references(running.fuser, running.ensemble, [QUESTION], Form())
    assert failed == []
    assert len(scored.units) > 3
    assert scored.text == QUESTION.prompt


def test_both_combinations_can_be_tried_without_another_pass(running):
    scored, _ = score_references(running.fuser, running.ensemble, [QUESTION, QUESTION], FORM)
    weights = np.array([[1.0, 0.0, 0.0], [1 / 3] * 3])
    alone, _ = by_text(scored)(weights)
    assert alone[0] == pytest.approx(np.log(np.maximum(scored[0].units[:, 0], LEAST)).mean())
    mixture, product = by_token(scored, running.ensemble.first, FusionParams(unmapped="pivot"))
    for likelihood in (mixture, product):
        values, slopes = likelihood(weights)
        assert np.isfinite(values).all()
        assert slopes.shape == (2, 3)


def test_what_cannot_be_scored_gets_a_sentence(running):
    member = running.ensemble.models["abacus"].member
    plain = member.distribution
    end = running.ensemble.models["abacus"].tokenizer.encode("January.", add_special_tokens=False)[-1]

    def distribution(tokens):
        row = plain(tokens).copy()
        row[end] = -np.inf
        return row

    member.distribution = distribution
    questions = [QUESTION, Question("Say it", "x " * 5000, "long"), Question("Say it", "yes", "talk")]
    scored, failed = score_references(running.fuser, running.ensemble, questions, FORM)
    assert [one.question.reference for one in scored] == ["yes"]
    assert len(failed) == 2
    assert all(sentence.endswith(".") for sentence in failed)
