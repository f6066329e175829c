"""Puts questions to the names that a server serves, as a client would."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import httpx

from alignment.errors import TuttiError
from server.evaluation.questions import Question
from server.evaluation.scoring import chrf, is_right

PATIENCE = 5  # times that an overloaded server is asked again


class EvaluationError(TuttiError):
    """The server cannot be evaluated at all; one sentence."""


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
    *,
    max_tokens: int,
    concurrency: int,
    on_answer: Callable[[Answer], None],
) -> list[Answer]:
    """Every question to every model, greedily, `concurrency` requests at a time; answers in order of asking."""
    slots = asyncio.Semaphore(concurrency)

    async def ask(model: str, question: Question) -> Answer:
        async with slots:
            answer = await _ask(client, model, question, max_tokens)
        on_answer(answer)
        return answer

    return await asyncio.gather(*(ask(model, question) for model, question in product(models, questions)))


async def _ask(client: httpx.AsyncClient, model: str, question: Question, max_tokens: int) -> Answer:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question.prompt}],
        "temperature": 0,
        "max_tokens": max_tokens,
    }
    began = time.perf_counter()
    text, finish, error = "", None, None
    try:
        choice = (await _post(client, body))["choices"][0]
        text, finish = str(choice["message"]["content"] or ""), choice["finish_reason"]
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as failure:
        error = str(failure) or type(failure).__name__
    seconds = time.perf_counter() - began
    right = error is None and is_right(question, text)
    return Answer(model, question, text, right, chrf(question, text), finish, error, seconds)


async def _post(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    for attempt in range(PATIENCE + 1):
        response = await client.post("/v1/chat/completions", json=body)
        if response.status_code != httpx.codes.TOO_MANY_REQUESTS or attempt == PATIENCE:
            break
        await asyncio.sleep(float(response.headers.get("retry-after", "1")))
    if response.is_error:
        raise ValueError(f"HTTP {response.status_code}: {response.text[:500]}")
    result: dict[str, Any] = response.json()
    return result
