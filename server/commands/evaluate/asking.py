"""Asking: sends questions to the served names of a server, through the OpenAI client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import httpx2
import openai

from alignment.errors import NO_CHAT_TEMPLATE, TuttiError
from fusion.calibrate.asking import Form
from server.commands.evaluate.questions import Question
from server.commands.evaluate.scoring import chrf, is_right

# Raised by answers of another shape than OpenAI's, which the SDK hands over as they are.
MALFORMED = (ValueError, LookupError, TypeError, AttributeError)


class EvaluationError(TuttiError):
    """The server cannot be evaluated at all; one sentence."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of one served name to one question; `error` in place of `text` where there is none.

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


async def served_names(client: openai.AsyncOpenAI) -> list[str]:
    """The served names, in the server's order.

    Raises:
        EvaluationError: it cannot be reached, refuses, or answers something else.
    """
    server = str(client.base_url).removesuffix("/v1/")
    try:
        return [model.id for model in (await client.with_options(max_retries=0).models.list()).data]
    except openai.APIStatusError as error:
        reason = f"{error.status_code} {error.response.reason_phrase}"
        raise EvaluationError(f"{server} cannot be evaluated: {reason}.") from error
    except openai.APIConnectionError as error:
        reason = str(error.__cause__ or error) or type(error).__name__
        raise EvaluationError(f"{server} cannot be evaluated: {reason}.") from error
    except (openai.APIError, *MALFORMED) as error:
        raise EvaluationError(f"{server} does not answer like an OpenAI-compatible server.") from error


async def ask_all(
    client: openai.AsyncOpenAI,
    models: Sequence[str],
    questions: Sequence[Question],
    form: Form,
    *,
    concurrency: int,
    on_answer: Callable[[Answer], None],
) -> list[Answer]:
    """Ask every model every question, `concurrency` requests at a time; return the answers in order of asking.

    Raises:
        EvaluationError: one of the models cannot be asked in a chat at all.
    """
    slots = asyncio.Semaphore(concurrency)

    async def ask(model: str, question: Question) -> Answer:
        async with slots:
            answer = await _ask(client, model, question, form)
        on_answer(answer)
        return answer

    return await asyncio.gather(*(ask(model, question) for model, question in product(models, questions)))


async def _ask(client: openai.AsyncOpenAI, model: str, question: Question, form: Form) -> Answer:
    began = time.perf_counter()
    text, finish, error = "", None, None
    try:
        text, finish = await _said(client, model, question, form)
    except openai.APIStatusError as failure:
        if NO_CHAT_TEMPLATE in failure.response.text:
            raise EvaluationError(
                f"{model!r} cannot be asked in a chat because it has no chat template; "
                "give --completions to ask in plain text."
            ) from failure
        error = f"HTTP {failure.status_code}: {failure.response.text[:500]}"
    except (openai.APIError, httpx2.HTTPError) as failure:
        error = str(failure.__cause__ or failure) or type(failure).__name__
    except MALFORMED as failure:
        error = f"The answer is not a completion of OpenAI's API: {failure}"
    seconds = time.perf_counter() - began
    right = error is None and is_right(question, text)
    return Answer(model, question, text, right, chrf(question, text), finish, error, seconds)


async def _said(client: openai.AsyncOpenAI, model: str, question: Question, form: Form) -> tuple[str, str | None]:
    """The text of an answer, and why it ended."""
    options: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": form.max_tokens}
    if form.stop:
        options["stop"] = list(form.stop)
    if form.template is None:
        messages: Any = [{"role": "user", "content": question.prompt}]
        chosen = (await client.chat.completions.create(messages=messages, **options)).choices[0]
        return str(chosen.message.content or ""), chosen.finish_reason
    completed = (await client.completions.create(prompt=form.text(question.prompt), **options)).choices[0]
    return str(completed.text or ""), completed.finish_reason
