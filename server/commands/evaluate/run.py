"""`tutti eval` from end to end: a server, the questions, the answers."""

from __future__ import annotations

from collections.abc import Sequence

import openai
from rich.console import Console

from fusion.calibrate.asking import Form
from server.commands.evaluate.asking import Answer, EvaluationError, ask_all, served_names
from server.commands.evaluate.questions import Question
from server.commands.tables import progress


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
