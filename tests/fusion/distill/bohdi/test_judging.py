"""Verdicts on answers: shuffled, equal ones once, by a model or by log-probability."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fusion.distill.bohdi.judging import Case, judge
from fusion.distill.bohdi.settings import TARGET, Prompts
from fusion.distill.bohdi.voices import Reply
from tests.support.scripted_voices import ScriptedVoices, said

CASE = Case("Which?", {TARGET: "a", "ben": "b", "eve": "c"}, "eve")


def verdicts(cases, by="source", seed=0, **scripted):
    voices = ScriptedVoices(**scripted)
    return judge(cases, by, Prompts(), voices, np.random.default_rng(seed)), voices


def test_answers_are_shown_in_every_place_equally_often():
    found, voices = verdicts([CASE] * 300)
    for place in range(3):
        shares = [sum(verdict.shown[place] == answer for verdict in found) / 300 for answer in "abc"]
        assert shares == pytest.approx([1 / 3] * 3, abs=0.1)
    assert all(request.model == "eve" for request in voices.asked)
    assert all("target" not in request.prompt and "ben" not in request.prompt for request in voices.asked)


def test_the_number_is_that_of_the_order_in_which_answers_were_shown():
    found, voices = verdicts([CASE] * 20, reply=lambda request: said('{"best": 2}'))
    for verdict, request in zip(found, voices.asked, strict=True):
        assert verdict.answer == verdict.shown[1]
        assert f"Answer 2: {verdict.answer}" in request.prompt
        assert verdict.winners == tuple(name for name, text in CASE.answers.items() if text == verdict.answer)
        assert verdict.reward == int(verdict.answer != "a")


def test_equal_answers_are_judged_once_and_the_target_shares_a_victory():
    case = Case("Which?", {TARGET: "a", "ben": "a", "eve": "b"}, "eve")
    (found,), _ = verdicts([case], by="fused", score=lambda answer: {"a": -1.0, "b": -2.0}[answer])
    assert sorted(found.shown) == ["a", "b"]
    assert (found.answer, found.winners, found.reward) == ("a", (TARGET, "ben"), 0)
    assert dict(zip(found.shown, found.scores, strict=True)) == {"a": -1.0, "b": -2.0}


def test_one_answer_needs_no_judge():
    (same,), voices = verdicts([Case("Which?", {TARGET: "a", "ben": "a"}, "ben")])
    (alone,), _ = verdicts([Case("Which?", {"ben": "a"}, "ben")])
    assert voices.asked == []
    assert (same.answer, same.reward) == ("a", 0)
    assert (alone.answer, alone.reward) == ("a", 1)


@pytest.mark.parametrize(
    "text", ["", "2", "[]", '{"best": 0}', '{"best": 4}', '{"best": "1"}', '{"best": true}', '{"best": 1', "null"]
)
def test_a_verdict_that_names_no_answer_decides_nothing(text):
    (found,), _ = verdicts([CASE], reply=lambda request: said(text))
    assert (found.answer, found.winners, found.reward) == (None, (), None)


def test_a_judge_that_is_gone_decides_nothing():
    (found,), _ = verdicts([CASE], reply=lambda request: Reply(json.dumps({"best": 1}), False, "it is down"))
    assert found.reward is None


def test_scores_that_are_missing_or_no_numbers_never_win():
    scores = {"a": None, "b": float("nan"), "c": -700.0}
    (found,), _ = verdicts([CASE], by="fused", score=lambda answer: scores[answer])
    assert found.winners == ("eve",)
    (none,), _ = verdicts([CASE], by="fused", score=lambda answer: None)
    assert none.reward is None
