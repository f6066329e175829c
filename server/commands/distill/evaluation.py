"""Evaluating a distillation: start, targets, merged, sources and the ensemble of them, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fusion.calibrate.asking import Form
from fusion.distill.training.settings import BASE, Source
from fusion.distill.training.shards import write_json
from server.commands.client import local
from server.commands.evaluate import report
from server.commands.evaluate.asking import Answer
from server.commands.evaluate.questions import read_all
from server.commands.evaluate.run import evaluate as ask_all
from server.settings import Settings
from server.settings.distill.parts import ENSEMBLE, EvaluateSection


def evaluate(served: Settings, settings: EvaluateSection, path: Path, output: Console, progress: Console) -> None:
    """Ask everyone the questions, print the table, and keep answers and scores in `path`.

    Raises:
        ConfigError: a model that is to be asked is not there yet, or cannot be loaded.
    """
    questions = read_all([Path(task) for task in settings.tasks], settings.limit)

    async def ask() -> list[Answer]:
        async with local(served) as client:
            return await ask_all(client, questions, progress, form=Form())

    answers = asyncio.run(ask())
    summaries = report.summarise(answers)
    output.print(report.scores_table(summaries))
    # How long an answer took is left out: what is kept does not depend on how often the stage was begun.
    said = [{name: value for name, value in asdict(one).items() if name != "seconds"} for one in answers]
    write_json(path, {"summary": [asdict(summary) for summary in summaries], "answers": said})


def served_models(
    folders: Mapping[str, Path], sources: Mapping[str, Source], settings: EvaluateSection
) -> Settings:
    """The configuration of a server with what is in folders, the models it came from (the base as `BASE`), and
    their ensemble. What is in folders runs as the base does, in float32."""
    models: dict[str, Any] = {
        name: asdict(replace(sources[BASE], source=str(folder), revision=None, dtype="float32"))
        for name, folder in folders.items()
        if folder.exists()
    }
    models |= {name: asdict(source) for name, source in sources.items()}
    ensembles: dict[str, Any] = {}
    if settings.ensemble:
        ensembles[ENSEMBLE] = {
            "members": list(sources),
            "pivot": settings.pivot or BASE,
            "alignment": settings.alignment,
        }
    served: Mapping[str, Any] = {"models": models, "ensembles": ensembles}
    return Settings.model_validate(served, context={"folder": Path.cwd()})
