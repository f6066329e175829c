"""Evaluating a distillation: start, targets, merged, sources and the ensemble of them, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from fusion.distill.fusechat.run import START, Run
from fusion.distill.fusechat.settings import BASE, Source
from server.commands.evaluate import report
from server.commands.evaluate.asking import Answer, Asking
from server.commands.evaluate.run import evaluate as ask_all
from server.commands.evaluate.run import local, read_all
from server.settings import Settings
from server.settings.distill import EvaluateSection

ENSEMBLE = "ensemble"


def evaluate(run: Run, settings: EvaluateSection, output: Console, progress: Console) -> None:
    """Ask everyone the questions, print the table, and keep answers and scores in `work/evaluate.json`.

    Raises:
        ConfigError: a model that is to be asked is not there yet, or cannot be loaded.
    """
    questions = read_all([Path(task) for task in settings.tasks], settings.limit)
    served = served_models(run, settings)

    async def ask() -> list[Answer]:
        async with local(served) as client:
            return await ask_all(client, questions, progress, asking=Asking())

    answers = asyncio.run(ask())
    summaries = report.summarise(answers)
    output.print(report.scores_table(summaries))
    report.write_json(run.settings.work / "evaluate.json", answers, summaries)


def served_models(run: Run, settings: EvaluateSection) -> Settings:
    """The configuration of a server with all of them."""
    distilled = run.settings
    folders = {START: run.model_folder(START)}
    folders |= {f"target-{name}": run.model_folder(name) for name in distilled.targets}
    folders |= {f"merged-{method}": run.merged_folder(method) for method in distilled.merge.compare}
    folders |= {distilled.name: distilled.out}
    models: dict[str, Any] = {
        name: {"source": str(folder), "dtype": "float32"} for name, folder in folders.items() if folder.exists()
    }
    models |= {name: _model(source) for name, source in distilled.readers.items()}
    ensembles: dict[str, Any] = {}
    if settings.ensemble:
        ensembles[ENSEMBLE] = {
            "members": list(distilled.readers),
            "pivot": settings.pivot or BASE,
            "alignment": settings.alignment,
        }
    served: Mapping[str, Any] = {"models": models, "ensembles": ensembles}
    return Settings.model_validate(served, context={"folder": Path.cwd()})


def _model(source: Source) -> dict[str, Any]:
    return {
        "source": source.source,
        "engine": source.engine,
        "dtype": source.dtype,
        "device": source.device,
        "revision": source.revision,
    }
