"""References as the members predict them, against a plain computation from the members' distributions."""

from __future__ import annotations

import numpy as np
import pytest

from alignment.text.boundaries import shared_boundaries
from fusion.calibrate.asking import Form
from fusion.calibrate.likelihood import LEAST, by_text, by_token
from fusion.calibrate.references import Question, score_references
from fusion.options import FusionParams, Weighting
from tests.support.fuser_fixtures import run, tokenizers  # noqa: F401  (fixtures)
from tests.support.toy_fuser import toy_ensemble
from tests.support.weighted_prompts import report_of

FORM = Form("Say this: {prompt}\nAnswer:")
QUESTION = Question("the quiet farmer ran behind the forest.", "It is 19, after January.", "talk")


def said(model, text: list[int], id: int) -> float:
    """The log-probability of a token's text: tokens of the same bytes count where they are listed."""
    row = model.member.distribution(text)
    listed = set(np.argsort(-row, kind="stable")[: model.member.k].tolist())
    same = [id, *(other for other in model.tokenizer.reverse.doubles.get(id, ()) if other in listed)]
    return float(np.logaddexp.reduce(row[same].astype(np.float64)))


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
            sum(said(model, prompt.ids[name][: at + 1], prompt.ids[name][at + 1]) for at in span)
            for span in (range(first, end) for first, end in zip(before[name][:-1], before[name][1:], strict=True))
            if located.ends[span[0]] >= len(asked)
        ]
        assert np.log(scored.units[:, column]) == pytest.approx(units, abs=1e-4), name
    assert scored.rows.given.shape == (len(scored.rows.labels), 3)
    assert 0 < len(scored.rows.labels) <= len(scored.units)
    assert scored.losses is not None


def test_a_reference_begins_with_the_space_that_a_member_wrote(running):
    """Two spaces are another text than one, and cost the members something else."""
    one, two = (
        score_references(running.fuser, running.ensemble, [Question(QUESTION.prompt, text, "talk")], FORM)[0][0]
        for text in (" It is 19.", "  It is 19.")
    )
    plain = score_references(
        running.fuser, running.ensemble, [Question(QUESTION.prompt, "It is 19.", "talk")], FORM
    )
    assert one.units == pytest.approx(plain[0][0].units, rel=1e-3)
    assert one.units.shape != two.units.shape or not np.allclose(one.units, two.units, rtol=0.1)


def test_usual_losses_are_known_for_every_pivot(tokenizers, run):  # noqa: F811
    """Measured around one pivot and taken off around another, they leave nothing of their own prompt."""
    names = list(toy_ensemble(tokenizers, pivot="lingvo").models)
    running = run(toy_ensemble(tokenizers, pivot=names[0]))
    (scored,), _ = score_references(running.fuser, running.ensemble, [QUESTION], Form("{prompt}"))
    shares = scored.losses.whole / scored.losses.whole.sum()
    assert scored.usual / scored.usual.sum(axis=1, keepdims=True) == pytest.approx(np.tile(shares, (3, 1)))
    assert len({round(total, 3) for total in scored.usual.sum(axis=1)}) > 1, (
        "tokens of the pivots differ in length"
    )
    for row, name in enumerate(names):
        own = run(toy_ensemble(tokenizers, pivot=name))
        offsets = dict(zip(names, scored.usual[row].tolist(), strict=True))
        prompt = own.ensemble.encode_text(QUESTION.prompt, locate=True)
        centred = FusionParams(weighting=Weighting("packllm-sim", offsets=offsets))
        assert list(report_of(own, prompt, centred).weights.values()) == pytest.approx([1 / 3] * 3, abs=0.02), name


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
    mixture, product = by_token(scored)
    for likelihood in (mixture, product):
        values, slopes = likelihood(weights)
        assert np.isfinite(values).all()
        assert slopes.shape == (2, 3)


def test_what_cannot_be_scored_gets_a_sentence(running):
    member = running.ensemble.models["abacus"].member
    plain = member.distribution
    tokenizer = running.ensemble.models["abacus"].tokenizer
    end, doubles = tokenizer.encode("January.", add_special_tokens=False)[-1], tokenizer.reverse.doubles

    def distribution(tokens):
        row = plain(tokens).copy()
        row[[end, *doubles.get(end, ())]] = -np.inf
        return row

    member.distribution = distribution
    questions = [QUESTION, Question("Say it", "x " * 5000, "long"), Question("Say it", "yes", "talk")]
    scored, failed = score_references(running.fuser, running.ensemble, questions, FORM)
    assert [one.question.reference for one in scored] == ["yes"]
    assert len(failed) == 2
    assert all(sentence.endswith(".") for sentence in failed)
