"""`tutti distill bohdi`: rounds of exploration and learning with their bars."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from fusion.distill.bohdi.run import Run
from fusion.distill.training.folders import require_free
from fusion.distill.training.settings import BASE
from server.commands.distill.bars import bars
from server.commands.distill.evaluation import evaluate, served_models
from server.commands.tables import say
from server.settings.distill.bohdi import read_bohdi


def distill(path: Path, output: Console, progress: Console) -> None:
    """Run the rounds of a file, and ask what came of them the file's questions.

    Raises:
        ConfigError: what the file, the models or the disk lack, or that nothing was gathered, in one sentence.
    """
    settings, evaluated = read_bohdi(path)
    require_free(settings.out)
    with bars(progress) as report:
        run = Run(settings, report)
        run.run()
    for note in run.notes:
        say(progress, note)
    if evaluated is not None:
        rounds = range(1, settings.rounds)
        folders = {f"round-{round}": run.model_folder(round) for round in rounds} | {settings.name: settings.out}
        served = served_models(folders, {BASE: settings.base, **settings.sources}, evaluated)
        evaluate(served, evaluated, settings.work / "evaluate.json", output, progress)
    say(progress, f"{settings.name} is in {settings.out}.")
