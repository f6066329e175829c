"""The whole of `tutti eval`: a server, the questions, the answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from server.commands.evaluate.asking import Answer, Asking, EvaluationError, ask_all, served_names
from server.commands.evaluate.questions import Question, read_questions
from server.settings import Settings

_TIMEOUT = httpx.Timeout(10, read=None, pool=None)  # how long an answer may take is the server's to decide


def read_all(paths: Sequence[Path], limit: int | None = None) -> list[Question]:
    """The questions of all files, of each task only the first `limit`."""
    chosen, asked = [], Counter[str]()
    for question in (question for path in paths for question in read_questions(path)):
        asked[question.task] += 1
        if limit is None or asked[question.task] <= limit:
            chosen.append(question)
    return chosen


@asynccontextmanager
async def remote(url: str, api_key: str | None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a running server, whose URL may end in /v1 or not."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    base = url.rstrip("/").removesuffix("/v1")
    try:
        client = httpx.AsyncClient(base_url=base, headers=headers, timeout=_TIMEOUT)
    except httpx.InvalidURL as error:
        raise EvaluationError(f"{url} is no URL: {error}.") from None
    async with client:
        yield client


@asynccontextmanager
async def local(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the configured server, which is loaded into this process and takes no port."""
    from server.http.app import create_app
    from server.loading import build

    runtime = build(settings)
    open_to_all = settings.server.model_copy(update={"api_keys": (), "api_keys_file": None})
    app = create_app(runtime.ensembles, runtime.fuser, open_to_all)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://tutti", timeout=_TIMEOUT) as client,
    ):
        yield client


async def evaluate(
    client: httpx.AsyncClient,
    questions: Sequence[Question],
    console: Console,
    *,
    asking: Asking,
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
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bars = {model: progress.add_task(model, total=len(questions)) for model in chosen}
        return await ask_all(
            client,
            chosen,
            questions,
            asking,
            concurrency=concurrency,
            on_answer=lambda answer: progress.advance(bars[answer.model]),
        )
