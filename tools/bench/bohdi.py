"""Bohdi against its parts: `python -m tools.bench.bohdi FILE`, a file of `tutti distill bohdi`.

For every seed the run of the file, the same with fixed proportions over the domains that the bandit found, and
the same without introspection, all of as many questions and samples. The models after their last round are asked
the file's questions. Means and standard deviations over the seeds go to one JSON object on the last line: exact
match over all tasks, and its standard deviation across tasks (the paper's imbalance), both in percent. What is
finished is kept beside the file's `work` folder, so the command can be stopped and run again.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

from fusion.distill.bohdi.run import Run
from fusion.distill.bohdi.settings import Bohdi
from server.commands.evaluate.questions import read_all
from server.commands.evaluate.report import Summary
from server.settings.distill.bohdi import read_bohdi
from tools.bench.distilled import by_kind, report, spread

VARIANTS = ("bohdi", "fixed", "untested")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=VARIANTS, help="train this alone, and ask nothing")
    arguments = parser.parse_args()
    settings, asked = read_bohdi(arguments.file)
    assert asked is not None, "the file needs evaluate.tasks"
    models = {"start": Path(settings.base.source)}
    for seed in range(arguments.seeds):
        bandit = variant(settings, "bohdi", seed, ())
        for name in VARIANTS if arguments.only is None else (arguments.only,):
            run = bandit if name == "bohdi" else variant(settings, name, seed, tuple(bandit.state.tree.leaves))
            run.run()
            models[f"{name}-{seed}"] = run.model_folder(settings.rounds)
    if arguments.only is None:
        questions = read_all([Path(task) for task in asked.tasks], asked.limit)
        found = by_kind(models, questions)
        print(json.dumps({kind: figures(summaries) for kind, summaries in found.items()}))


def variant(settings: Bohdi, name: str, seed: int, leaves: tuple[tuple[str, ...], ...]) -> Run:
    """A run of one kind. The first seed's bandit is the file's own."""
    explore, train = replace(settings.explore, seed=seed), replace(settings.train, seed=seed)
    settings = replace(settings, explore=explore, train=train)
    if (name, seed) != ("bohdi", 0):
        work = settings.work.with_name(f"{settings.work.name}-{name}-{seed}")
        settings = replace(settings, work=work, out=work / "out")
    if name == "fixed":
        settings = replace(settings, explore=replace(explore, draws="fixed"), domains=leaves)
    if name == "untested":
        settings = replace(settings, tree=replace(settings.tree, window=None))
    return Run(settings, report)


def figures(summaries: list[Summary]) -> dict[str, object]:
    """Accuracy and imbalance of one kind of run, over its seeds."""
    accuracy = [100 * one.total.exact.mean for one in summaries]
    imbalance = [statistics.pstdev(100 * task.exact.mean for task in one.tasks.values()) for one in summaries]
    return {"accuracy": spread(accuracy), "imbalance": spread(imbalance)}


if __name__ == "__main__":
    main()
