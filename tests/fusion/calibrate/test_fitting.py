"""Weights learned from scored references: what is fitted, and when it falls back."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.calibrate import fitting
from fusion.calibrate.fitting import FEWEST, Fit, design_of, fit
from fusion.calibrate.likelihood import Mixture, Product
from fusion.calibrate.references import Scored
from fusion.learned.weights import ALONE, LOSSES, TEXT, UNIFORM
from tests.support.scored_questions import TEXTS, fingerprints, scored
from tests.support.scripted_fuser import ensemble

EXPERTS = {"sums": [0.9, 0.3], "towns": [0.3, 0.9]}


def fitted(questions: list[Scored]) -> Fit:
    members = questions[0].units.shape[1]
    names = list("abcd"[:members])
    return fit(questions, ensemble(members=tuple(names)), fingerprints(members))


def test_each_task_goes_to_its_expert():
    result = fitted(scored(EXPERTS, 20))
    assert result.weights.about.kind == TEXT
    for task, leader in (("sums", 0), ("towns", 1)):
        decision = result.weights.weigh(TEXTS[task].format(n=1234), ["a", "b"])
        assert decision.weights[leader] > 0.8
        assert decision.features
        assert decision.note is None


def test_the_reason_names_words_of_the_prompt():
    decision = fitted(scored(EXPERTS, 20)).weights.weigh(TEXTS["towns"].format(n=5), ["a", "b"])
    assert set(decision.features) & {"capital", "country", "the capital", "river", "land", "the country", "name"}


def test_fitting_is_deterministic():
    one, other = fitted(scored(EXPERTS, 15)), fitted(scored(EXPERTS, 15))
    assert one.weights.digest == other.weights.digest


def test_members_of_equal_quality_weigh_the_same_and_the_note_says_why():
    result = fitted(scored({"sums": [0.6, 0.6], "towns": [0.6, 0.6]}, 20))
    assert result.weights.about.kind == UNIFORM
    assert "No weights predict" in result.weights.about.notes[0]
    assert result.weights.weigh(TEXTS["sums"].format(n=3), ["a", "b"]).weights.tolist() == [0.5, 0.5]


def test_a_member_that_is_always_better_answers_alone():
    result = fitted(scored({"sums": [0.9, 0.1], "towns": [0.9, 0.1]}, 20))
    assert result.weights.about.kind == ALONE
    weights = result.weights.weigh(TEXTS["sums"].format(n=3), ["a", "b"]).weights
    assert weights.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("each", [1, (FEWEST - 1) // 2])
def test_from_few_questions_nothing_is_learned(each):
    result = fitted(scored(EXPERTS, each))
    assert result.weights.about.kind == UNIFORM
    assert "too few to learn" in result.weights.about.notes[0]


def test_many_tasks_of_a_question_each_are_held_out_in_turn(monkeypatch):
    tasks = {f"task {number}": [0.9, 0.1] for number in range(12)}
    for task in tasks:
        monkeypatch.setitem(TEXTS, task, "how many {n} are there")
    questions = scored(tasks, 1)
    folds = design_of(questions, ["a", "b"]).folds
    assert sorted(np.bincount(folds).tolist()) == [2, 2, 2, 3, 3]
    assert fitted(questions).weights.about.kind != UNIFORM


def test_no_question_is_few_as_well():
    result = fit([], ensemble(), fingerprints(2))
    assert result.weights.weigh("whatever", ["a", "b"]).weights.tolist() == [0.5, 0.5]


def test_one_task_is_said_to_be_one():
    result = fitted(scored({"sums": [0.9, 0.1]}, 20))
    assert any("one task, sums" in note for note in result.weights.about.notes)


def test_losses_decide_where_texts_cannot():
    questions = scored({"sums": [0.9, 0.2]}, 40) + scored({"sums": [0.2, 0.9]}, 40, seed=1)
    for index, one in enumerate(questions):  # who knows the text better answers it
        assert one.losses is not None
        one.losses.whole[:] = [1.0, 3.0] if index < 40 else [3.0, 1.0]
    assert fitted(questions).weights.about.kind == LOSSES


def test_a_prompt_unlike_all_questions_gets_equal_weights():
    decision = fitted(scored(EXPERTS, 20)).weights.weigh("Schreibe ein Gedicht über Bäume im Herbst", ["a", "b"])
    assert decision.weights.tolist() == [0.5, 0.5]
    assert "resembles no questions" in str(decision.note)


@pytest.mark.parametrize("kind", [Mixture, Product])
def test_the_gradient_is_that_of_the_likelihood(kind):
    rng = np.random.default_rng(0)
    if kind is Mixture:
        likelihood = Mixture([rng.random((4, 3)), rng.random((2, 3))])
    else:
        logs = [np.log(rng.dirichlet(np.ones(6), (p, 3))).transpose(0, 2, 1).astype(np.float32) for p in (4, 2)]
        likelihood = Product(logs, [np.array([0, 1, 2, 3]), np.array([5, 4])])
    weights = rng.dirichlet(np.ones(3), 2)
    values, slopes = likelihood(weights)
    for member in range(3):
        moved = weights.copy()
        moved[:, member] += 1e-4
        assert (likelihood(moved)[0] - values) / 1e-4 == pytest.approx(slopes[:, member], rel=1e-2, abs=1e-3)


def test_the_simplest_candidate_stays_unless_another_is_better_by_more_than_chance():
    rng = np.random.default_rng(0)
    base = fitting.Tried(fitting.Spec(UNIFORM), np.zeros(50))
    noise = fitting.Tried(fitting.Spec(TEXT), rng.standard_normal(50) * 0.5)
    better = fitting.Tried(fitting.Spec(TEXT), rng.standard_normal(50) * 0.5 + 1)
    assert fitting.select([base, noise]).spec.kind == UNIFORM
    assert fitting.select([base, better]).spec.kind == TEXT
