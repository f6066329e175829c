"""FuseChat against plain fine-tuning: `python -m tools.bench.fusechat FILE`, a file of `tutti distill fusechat`.

For every seed the targets and the merged model, and plain fine-tuning on the same texts: `plain` takes as many
steps as one target, `plain_total` (with `--total`) as many as all targets together. All are asked the file's
questions; means and standard deviations over the seeds go to one JSON object on the last line, with the mean of
each task.
What is finished is kept in the file's `work` folder, so the command can be stopped and run again.
"""

import argparse
import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

from fusion.distill.fusechat.run import Run
from fusion.distill.fusechat.settings import FuseChat
from fusion.distill.training.settings import Train, digest_of
from fusion.distill.training.train import train
from server.commands.evaluate.questions import read_all
from server.commands.evaluate.report import Summary
from server.settings.distill.fusechat import read_fusechat
from tools.bench.distilled import by_kind, report, spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of a target, instead of the file's")
    parser.add_argument("--only", choices=["plain", "fused"], help="train these alone, and ask nothing")
    parser.add_argument("--total", action="store_true", help="fine-tune as long as all targets together, too")
    arguments = parser.parse_args()
    settings, asked = read_fusechat(arguments.file)
    assert asked is not None, "the file needs evaluate.tasks"
    first = Run(settings, report)
    first.represent()
    first.align()
    if arguments.steps is not None:
        settings = beside(settings, f"steps-{arguments.steps}", replace(settings.train, steps=arguments.steps))
        first = Run(settings, report)
    models: dict[str, Path] = {}
    for seed in range(arguments.seeds):
        if arguments.only != "fused":
            models[f"plain-{seed}"] = plain(first, seed, "plain", 1)
            if arguments.total:
                models[f"plain_total-{seed}"] = plain(first, seed, "plain_total", len(settings.targets))
        if arguments.only != "plain":
            models |= fused(settings, seed)
    if arguments.only is None:
        questions = read_all([Path(task) for task in asked.tasks], asked.limit)
        models["start"] = first.model_folder("start")
        found = by_kind(models, questions)
        print(json.dumps({kind: figures(summaries) for kind, summaries in found.items()}))


def plain(run: Run, seed: int, kind: str, times: int) -> Path:
    """Fine-tuning on the same texts without any other model, for `times` the length of a target's training."""
    settings = run.settings.train
    steps = None if settings.steps is None else times * settings.steps
    settings = replace(settings, seed=seed, lm_weight=1.0, steps=steps, epochs=times * settings.epochs)
    folder = run.settings.work / kind / f"seed-{seed}"
    inputs = digest_of(settings, run.settings.data, run.reading["base"])
    name = f"{kind} {seed}"
    train(name, run.settings.base, run.texts(None), settings, folder, inputs, lambda a, b: report(name, a, b))
    return folder / "model"


def fused(settings: FuseChat, seed: int) -> dict[str, Path]:
    """Targets and merged models of a seed; the first is the file's own."""
    if seed != settings.train.seed:
        settings = beside(settings, f"seed-{seed}", replace(settings.train, seed=seed))
    run = Run(settings, report)
    run.train()
    run.merge()
    methods = (settings.merge.method, *settings.merge.compare)
    found = {f"{method}-{seed}": run.merged_folder(method) for method in methods}
    return found | {f"target-{name}-{seed}": run.model_folder(name) for name in settings.targets}


def beside(settings: FuseChat, name: str, training: Train) -> FuseChat:
    """The same with another training, in a folder of its own below `work`, from the same readings."""
    work = settings.work / name
    for stage in ("represent", "align"):
        shutil.copytree(settings.work / stage, work / stage, dirs_exist_ok=True)
    return replace(settings, work=work, out=work / "out", train=training)


def figures(summaries: list[Summary]) -> dict[str, object]:
    """Exact match of one kind of model over all questions, seed by seed, and the mean of each task."""
    tasks = {
        name: round(statistics.mean(100 * summary.tasks[name].exact.mean for summary in summaries), 1)
        for name in summaries[0].tasks
    }
    return spread([100 * summary.total.exact.mean for summary in summaries]) | {"tasks": tasks}


if __name__ == "__main__":
    main()
