"""`tutti eval` from end to end: a server, the questions, the answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import openai
from rich.console import Console

from fusion.calibrate.asking import Form
from server.commands.client import NO_KEY, api_url
from server.commands.evaluate.asking import Answer, EvaluationError, ask_all, served_names
from server.commands.evaluate.questions import Metric, Question, read_questions
from server.commands.tables import progress
from server.settings import Settings
from server.settings.fields import Match

_RETRIES = 5  # of a request that an overloaded server refuses, after the time that it names
_TIMEOUT = openai.Timeout(10, read=None, pool=None)  # how long an answer may take is the server's to decide


def read_all(
    paths: Sequence[Path], limit: int | None = None, match: Match | None = None, metric: Metric = "match"
) -> list[Question]:
    """The questions of all files, of each task only the first `limit`; `match` and `metric` for rows without."""
    chosen, asked = [], Counter[str]()
    for question in (question for path in paths for question in read_questions(path, match, metric)):
        asked[question.task] += 1
        if limit is None or asked[question.task] <= limit:
            chosen.append(question)
    return chosen


def client_of(url: str, api_key: str | None = None, http: httpx2.AsyncClient | None = None) -> openai.AsyncOpenAI:
    """An OpenAI client that waits as long as an answer takes, and asks an overloaded server again."""
    return openai.AsyncOpenAI(
        base_url=api_url(url),
        api_key=api_key or NO_KEY,
        timeout=_TIMEOUT,
        max_retries=_RETRIES,
        http_client=http,
    )


@asynccontextmanager
async def remote(url: str, api_key: str | None) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of a running server, whose URL may end in /v1 or not."""
    try:
        client = client_of(url, api_key)
    except httpx2.InvalidURL as error:
        raise EvaluationError(f"{url} is no URL: {error}.") from None
    async with client:
        yield client


@asynccontextmanager
async def local(settings: Settings) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of the configured server, which is loaded into this process and takes no port."""
    from server.http.app import create_app
    from server.loading import build

    runtime = build(settings)
    open_to_all = settings.server.model_copy(update={"api_keys": (), "api_keys_file": None})
    app = create_app(runtime.ensembles, runtime.fuser, open_to_all)
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app))
    async with app.router.lifespan_context(app), client_of("http://tutti", http=http) as client:
        yield client


async def evaluate(
    client: openai.AsyncOpenAI,
    questions: Sequence[Question],
    console: Console,
    *,
    form: Form,
    models: Sequence[str] = (),
    concurrency: int = 16,
) -> list[Answer]:
    """Ask every served name (or only `models`) every question, showing progress.

    Raises:
        EvaluationError: the server cannot be reached, does not serve one of `models`, or cannot chat with one.
    """
    served = await served_names(client)
    if missing := [model for model in models if model not in served]:
        raise EvaluationError(f"'{missing[0]}' is not served; choose from {', '.join(served)}.")
    chosen = list(dict.fromkeys(models)) or served
    with progress(console) as running:
        bars = {model: running.add_task(model, total=len(questions)) for model in chosen}
        return await ask_all(
            client,
            chosen,
            questions,
            form,
            concurrency=concurrency,
            on_answer=lambda answer: running.advance(bars[answer.model]),
        )
