"""Puts questions to the names that a server serves, as a client would."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import httpx

from alignment.errors import NO_CHAT_TEMPLATE, TuttiError
from server.commands.evaluate.questions import Question
from server.commands.evaluate.scoring import chrf, is_right

PATIENCE = 5  # times that an overloaded server is asked again
QUESTION = "{prompt}"


class EvaluationError(TuttiError):
    """The server cannot be evaluated at all; one sentence."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How questions are put, always greedily.

    Attributes:
        template: the plain text of a completion, in which the question takes the place of `QUESTION`; None asks
            in a chat, where every model has its own template.
        stop: texts that end an answer.
        max_tokens: the longest answer.
    """

    template: str | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int = 256


@dataclass(frozen=True, slots=True)
class Answer:
    """What one served name said to one question; `error` in place of `text` where it said nothing.

    `chrf` is None for answers that are no text, `seconds` counts from sending to the last byte.
    """

    model: str
    question: Question
    text: str
    right: bool
    chrf: float | None
    finish_reason: str | None
    error: str | None
    seconds: float


async def served_names(client: httpx.AsyncClient) -> list[str]:
    """What the server serves, in its order.

    Raises:
        EvaluationError: it cannot be reached, refuses, or answers something else.
    """
    try:
        response = await client.get("/v1/models")
        response.raise_for_status()
        return [str(model["id"]) for model in response.json()["data"]]
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise EvaluationError(f"{client.base_url} cannot be evaluated: {reason}.") from error
    except (ValueError, LookupError, TypeError) as error:
        raise EvaluationError(f"{client.base_url} does not answer like an OpenAI-compatible server.") from error


async def ask_all(
    client: httpx.AsyncClient,
    models: Sequence[str],
    questions: Sequence[Question],
    asking: Asking,
    *,
    concurrency: int,
    on_answer: Callable[[Answer], None],
) -> list[Answer]:
    """Every question to every model, `concurrency` requests at a time; answers in order of asking.

    Raises:
        EvaluationError: one of the models cannot be asked in a chat at all.
    """
    slots = asyncio.Semaphore(concurrency)

    async def ask(model: str, question: Question) -> Answer:
        async with slots:
            answer = await _ask(client, model, question, asking)
        on_answer(answer)
        return answer

    return await asyncio.gather(*(ask(model, question) for model, question in product(models, questions)))


async def _ask(client: httpx.AsyncClient, model: str, question: Question, asking: Asking) -> Answer:
    path, body = _request(model, question, asking)
    began = time.perf_counter()
    text, finish, error = "", None, None
    try:
        choice = (await _post(client, path, body))["choices"][0]
        said = choice["message"]["content"] if asking.template is None else choice["text"]
        text, finish = str(said or ""), choice["finish_reason"]
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as failure:
        error = str(failure) or type(failure).__name__
    seconds = time.perf_counter() - began
    right = error is None and is_right(question, text)
    return Answer(model, question, text, right, chrf(question, text), finish, error, seconds)


def _request(model: str, question: Question, asking: Asking) -> tuple[str, dict[str, Any]]:
    """The path and the body that put a question."""
    body = {"model": model, "temperature": 0, "max_tokens": asking.max_tokens}
    if asking.stop:
        body["stop"] = list(asking.stop)
    if asking.template is None:
        return "/v1/chat/completions", body | {"messages": [{"role": "user", "content": question.prompt}]}
    return "/v1/completions", body | {"prompt": asking.template.replace(QUESTION, question.prompt)}


async def _post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    for attempt in range(PATIENCE + 1):
        response = await client.post(path, json=body)
        if response.status_code != httpx.codes.TOO_MANY_REQUESTS or attempt == PATIENCE:
            break
        await asyncio.sleep(float(response.headers.get("retry-after", "1")))
    if NO_CHAT_TEMPLATE in response.text and response.is_error:
        raise EvaluationError(
            f"{body['model']!r} cannot be asked in a chat, for want of a chat template; "
            "give --completions to ask in plain text."
        )
    if response.is_error:
        raise ValueError(f"HTTP {response.status_code}: {response.text[:500]}")
    result: dict[str, Any] = response.json()
    return result
