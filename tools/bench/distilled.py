"""Distilled models under their file's questions, for the benchmarks of distillations."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fusion.calibrate.asking import Form
from server.commands.client import local
from server.commands.evaluate.asking import Answer
from server.commands.evaluate.questions import Question
from server.commands.evaluate.report import Summary, scores_table, summarise
from server.commands.evaluate.run import evaluate
from server.settings import Settings

console = Console(stderr=True, width=150)


def by_kind(models: dict[str, Path], questions: list[Question]) -> dict[str, list[Summary]]:
    """Ask all models, called KIND-SEED or as a whole; the summaries of each kind, in the order of the models."""
    served = {name: {"source": str(folder.absolute()), "dtype": "float32"} for name, folder in models.items()}
    settings = Settings.model_validate({"models": served}, context={"folder": Path.cwd()})

    async def ask() -> list[Answer]:
        async with local(settings) as client:
            return await evaluate(client, questions, console, form=Form())

    summaries = summarise(asyncio.run(ask()))
    console.print(scores_table(summaries))
    kinds: dict[str, list[Summary]] = {}
    for summary in summaries:
        kinds.setdefault(summary.model.rpartition("-")[0] or summary.model, []).append(summary)
    return kinds


def spread(values: Sequence[float]) -> dict[str, object]:
    """Mean, standard deviation, and the values themselves."""
    return {
        "mean": round(statistics.mean(values), 2),
        "sd": round(statistics.stdev(values), 2) if len(values) > 1 else None,
        "each": [round(value, 2) for value in values],
    }


def report(what: str, done: int, total: int) -> None:
    """Progress of a stage, now and then."""
    if done == total or done % 50 == 0:
        console.print(f"{what}: {done} of {total}")
