"""Requests that an evaluation makes, and the failures that it lives with."""

from __future__ import annotations

import httpx2
import pytest

from fusion.calibrate.asking import Form
from server.commands.evaluate import report
from server.commands.evaluate.asking import EvaluationError
from tests.support.questions import QUESTIONS, Oracle, ask


def test_every_served_name_is_asked_everything_greedily():
    oracle = Oracle(QUESTIONS)
    answers = ask(oracle, Form(max_tokens=9), concurrency=4)
    assert [(a.model, a.question) for a in answers] == [(m, q) for m in ("good", "bad", "sick") for q in QUESTIONS]
    assert all(body["temperature"] == 0 and body["max_tokens"] == 9 for body in oracle.bodies)
    assert all("messages" in body and "stop" not in body for body in oracle.bodies)
    assert 1 < oracle.most_at_once <= 4
    good, bad, sick = report.summarise(answers)
    assert good.total.exact.mean == 1
    assert good.total.chrf is not None
    assert good.total.chrf.mean == 100
    assert bad.total.exact.mean == 0
    assert (good.failed, bad.failed, sick.failed) == (0, 0, 12)
    assert "a member is down" in str(answers[-1].error)
    assert report.first_failures(answers) == {"sick": answers[-len(QUESTIONS)].error}


def test_plain_text_is_asked_for_a_completion():
    oracle = Oracle(QUESTIONS)
    answers = ask(oracle, Form("{prompt}\n{Answer}:", stop=("\n", "Q:")), models=["good"])
    assert all(answer.right for answer in answers)
    assert {body["prompt"] for body in oracle.bodies} == {f"{q.prompt}\n{{Answer}}:" for q in QUESTIONS}
    assert all(body["stop"] == ["\n", "Q:"] and "messages" not in body for body in oracle.bodies)


def test_a_model_without_a_chat_template_is_told_from_one_that_fails():
    error = {"message": "The model m has no chat template.", "code": "no_chat_template"}
    oracle = Oracle(QUESTIONS)

    async def base(request: httpx2.Request) -> httpx2.Response:
        if b"bad" in request.content and request.url.path == "/v1/chat/completions":
            return httpx2.Response(400, json={"error": error})
        return await oracle(request)

    with pytest.raises(EvaluationError, match=r"'bad' cannot be asked in a chat.*give --completions"):
        ask(base)
    assert len(ask(base, Form("{prompt}"), models=["bad"])) == len(QUESTIONS)


def test_an_overloaded_server_is_asked_again():
    oracle = Oracle(QUESTIONS)
    oracle.refusals = 5
    assert all(answer.right for answer in ask(oracle, models=["good"], concurrency=2, retries=5))


def test_only_the_chosen_models_are_asked():
    assert {answer.model for answer in ask(Oracle(QUESTIONS), models=["bad", "bad"])} == {"bad"}
    with pytest.raises(EvaluationError, match="'ugly' is not served; choose from good, bad, sick"):
        ask(Oracle(QUESTIONS), models=["ugly"])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (httpx2.Response(401), "401 Unauthorized"),
        (httpx2.Response(200, text="<html>"), "does not answer like an OpenAI-compatible server"),
        (httpx2.Response(200, json=[]), "does not answer like an OpenAI-compatible server"),
    ],
)
def test_a_server_that_cannot_be_evaluated(answer, message):
    with pytest.raises(EvaluationError, match=message):
        ask(lambda request: answer)


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": "x"}]}, []])
def test_an_answer_of_the_wrong_shape_is_a_failure_of_that_question_only(body):
    oracle = Oracle(QUESTIONS)

    async def odd(request: httpx2.Request) -> httpx2.Response:
        if b"0 and 0" in request.content:
            return httpx2.Response(200, json=body)
        return await oracle(request)

    assert [a.question.id for a in ask(odd, models=["good"]) if a.error] == ["n0"]
