"""`tutti distill fusechat`: the stages with their bars, or the plan alone."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from alignment.errors import ConfigError
from fusion.distill.fusechat.plan import Plan, make_plan
from fusion.distill.fusechat.run import START, Run
from fusion.distill.training.folders import require_free
from server.commands.distill.bars import bars
from server.commands.distill.evaluation import evaluate, served_models
from server.commands.tables import right, say, table
from server.settings.distill.fusechat import read_fusechat

Stage = Literal["represent", "align", "train", "merge", "evaluate"]
STAGES: tuple[Stage, ...] = get_args(Stage)


def stage_named(name: str) -> Stage:
    """The stage of this name; ConfigError, with the names that there are, for any other."""
    for stage in STAGES:
        if name == stage:
            return stage
    raise ConfigError(f"There is no stage {name!r}: use one of {', '.join(STAGES)}.")


def distill(path: Path, stage: Stage | None, dry_run: bool, output: Console, progress: Console) -> None:
    """Run all stages of a file, or one of them, or print what they will take.

    Raises:
        ConfigError: what the file, the models, the data or the disk lack, in one sentence.
    """
    settings, evaluated = read_fusechat(path)
    if stage == "evaluate" and evaluated is None:
        raise ConfigError(f"{path}: there is nothing to evaluate on; add evaluate.tasks.")
    if stage in (None, "merge"):
        require_free(settings.out)  # before hours of training
    if dry_run:
        output.print(plan_table(make_plan(Run(settings))))
        return
    with bars(progress) as report:
        run = Run(settings, report)
        for name in STAGES[:-1] if stage is None else (stage,):
            if name != "evaluate":
                getattr(run, name)()
    for note in run.notes:
        say(progress, note)
    if evaluated is not None and stage in (None, "evaluate"):
        served = served_models(_folders(run), settings.readers, evaluated)
        evaluate(served, evaluated, settings.work / "evaluate.json", output, progress)
    if stage in (None, "merge"):
        say(progress, f"{settings.name} is in {settings.out}.")


def _folders(run: Run) -> dict[str, Path]:
    """Everything that a distillation has made, by the name under which it is asked."""
    settings = run.settings
    folders = {START: run.model_folder(START)}
    folders |= {f"target-{name}": run.model_folder(name) for name in settings.targets}
    folders |= {f"merged-{method}": run.merged_folder(method) for method in settings.merge.compare}
    return folders | {settings.name: settings.out}


def plan_table(plan: Plan) -> Table:
    """What a distillation will take."""
    result = table("Plan", "", right(""))
    result.add_row("conversations", f"{plan.conversations:,}")
    result.add_row("  of them held out", f"{plan.held_out:,}")
    result.add_row("left out, without an answer", f"{plan.without_answer:,}")
    for name, reader in plan.readers.items():
        result.add_row(f"tokens read by {name}", f"{reader.tokens:,}")
        result.add_row("  of them answers", f"{reader.answers:,}")
        if reader.left_out:
            result.add_row("  conversations it cannot read", f"{reader.left_out:,}")
    result.add_row("steps of each target", f"{plan.steps:,}")
    result.add_row("memory while training, at least", decimal(plan.memory))
    result.add_row("disk, at most", decimal(plan.disk))
    return result
