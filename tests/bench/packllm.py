"""What weighting by the prompt does on the demo's held-out questions.

Accuracy per task and cost per token by each way of weighting, and whether a member that understands a prompt
answers it well. `python -m tests.bench.packllm [--limit N] [--prune P] [CONFIG]` prints a table and, as its last
line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from fusion.core import FusionParams, SamplingParams, Update
from fusion.ensemble import Ensemble, build_ensemble, build_for_any_pivot
from fusion.fuser import Fuser
from fusion.step import COMBINATIONS
from fusion.weighting import Weighting
from server.evaluation.questions import Question
from server.evaluation.run import read_all
from server.evaluation.scoring import is_right
from server.loading import build
from server.settings import read_settings

DEMO = Path(__file__).parents[2] / "deploy" / "demo.yaml"
MAX_TOKENS = 96
AT_A_TIME = 32


@dataclass
class Answer:
    """One answer: its text, how many members ran for each of its tokens, and the perplexities of its prompt."""

    question: Question
    texts: list[str] = field(default_factory=list)
    members: list[int] = field(default_factory=list)
    perplexity: dict[str, float] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        return is_right(self.question, "".join(self.texts))


@dataclass(frozen=True)
class Run:
    """All answers of one way of weighting."""

    answers: list[Answer]
    seconds: float

    def accuracy(self, task: str | None = None) -> float:
        return float(np.mean([a.right for a in self.answers if task in (None, a.question.task)]))

    @property
    def members_per_token(self) -> float:
        return float(np.mean([count for answer in self.answers for count in answer.members]))

    @property
    def ms_per_token(self) -> float:
        return 1e3 * self.seconds / sum(len(answer.members) for answer in self.answers)


def ask(fuser: Fuser, ensemble: Ensemble, questions: Sequence[Question], weighting: Weighting) -> Run:
    """All questions greedily, some at a time."""
    fusion = FusionParams(
        weighting=weighting,
        combine=ensemble.defaults.combine,
        filter_top=ensemble.defaults.filter_top,
        report=True,
    )
    answers = [Answer(question) for question in questions]
    places = threading.Semaphore(AT_A_TIME)
    errors: list[Exception] = []

    def listener(answer: Answer):
        def on_update(update: Update) -> None:
            answer.texts.append(update.text)
            if update.finish is None and update.error is None:
                return
            if update.error is not None:
                errors.append(update.error)
            answer.members = [len(round.weights) for round in update.rounds]
            answer.perplexity = update.weighting.perplexity if update.weighting else {}
            places.release()

        return on_update

    began = time.perf_counter()
    for answer in answers:
        places.acquire()
        messages = [{"role": "user", "content": answer.question.prompt}]
        prompt = ensemble.encode_chat(messages, locate=ensemble.scores(fusion))
        sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0)
        fuser.submit(ensemble, prompt, sampling, fusion, on_update=listener(answer))
    for _ in range(AT_A_TIME):
        places.acquire()
    if errors:
        raise errors[0]
    return Run(answers, time.perf_counter() - began)


def correlation(alone: dict[str, Run], scored: Run, tasks: Sequence[str]) -> dict[str, Any]:
    """Spearman's rank correlation of a member's mean log perplexity with its accuracy, over tasks x members.

    Texts of some tasks are harder to predict for everybody; `within_tasks` has each task's mean taken off both.
    """
    losses: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for answer in scored.answers:
        for member, perplexity in answer.perplexity.items():
            losses[answer.question.task, member].append(float(np.log(perplexity)))
    pairs = [(task, member) for task in tasks for member in alone]
    table = {
        f"{task} {member}": [float(np.mean(losses[task, member])), alone[member].accuracy(task)]
        for task, member in pairs
    }
    rank, probability = spearmanr(*zip(*table.values(), strict=True))
    by_task = np.array(list(table.values())).reshape(len(tasks), len(alone), 2)
    centred = (by_task - by_task.mean(axis=1, keepdims=True)).reshape(-1, 2)
    within, within_probability = spearmanr(centred)
    best = by_task[:, :, 0].argmin(axis=1) == by_task[:, :, 1].argmax(axis=1)
    return {
        "rank_correlation": float(rank),
        "p": float(probability),
        "rank_correlation_within_tasks": float(within),
        "p_within_tasks": float(within_probability),
        "tasks_whose_best_member_has_the_lowest_loss": int(best.sum()),
        "loss_and_accuracy": table,
    }


def run(config: Path, limit: int | None, threshold: float) -> dict[str, Any]:
    """Measure; the tables are printed as they come."""
    settings = read_settings(config)
    questions = read_all([Path(task) for task in settings.evaluation.tasks], limit)
    runtime = build(settings)
    ensemble = runtime.ensembles[next(iter(settings.ensembles))]
    models = ensemble.models
    tasks = list(dict.fromkeys(question.task for question in questions))
    runtime.fuser.start()
    try:
        alone = {
            name: ask(runtime.fuser, build_ensemble(name, {name: model}, name), questions, Weighting())
            for name, model in models.items()
        }
        runs = {}
        for combine in COMBINATIONS:
            defaults = replace(ensemble.defaults, combine=combine, weights=None)
            fixed = replace(ensemble, defaults=defaults)
            by_prompt = build_for_any_pivot("auto", models, defaults=defaults)
            ways = {
                "uniform": (fixed, Weighting()),
                "top1": (fixed, Weighting("top1")),
                "packllm-sim": (fixed, Weighting("packllm-sim")),
                "packllm-opt": (fixed, Weighting("packllm-opt")),
                f"packllm-sim, prune {threshold:g}": (fixed, Weighting("packllm-sim", prune=threshold)),
                f"packllm-opt, prune {threshold:g}": (fixed, Weighting("packllm-opt", prune=threshold)),
                "packllm-opt, pivot auto": (by_prompt, Weighting("packllm-opt")),
            }
            for way, (chosen, weighting) in ways.items():
                runs[f"{combine}: {way}"] = ask(runtime.fuser, chosen, questions, weighting)
    finally:
        runtime.fuser.stop()
    for name, one in (alone | runs).items():
        scores = "  ".join(f"{task} {100 * one.accuracy(task):5.1f}" for task in tasks)
        print(
            f"{name:<36} {scores}  all {100 * one.accuracy():5.1f}"
            f"  members/token {one.members_per_token:.2f}  ms/token {one.ms_per_token:.2f}"
        )
    told = correlation(alone, runs["mixture: packllm-sim"], tasks)
    print(f"rank correlation of log perplexity and accuracy: {told['rank_correlation']:.2f} (p = {told['p']:.2f})")
    print(
        f"with each task's mean taken off: {told['rank_correlation_within_tasks']:.2f} "
        f"(p = {told['p_within_tasks']:.2f}); the best member has the lowest loss in "
        f"{told['tasks_whose_best_member_has_the_lowest_loss']} of {len(tasks)} tasks"
    )
    return {
        "questions": len(questions),
        "accuracy": {
            name: {task: one.accuracy(task) for task in tasks} | {"all": one.accuracy()}
            for name, one in (alone | runs).items()
        },
        "members_per_token": {name: one.members_per_token for name, one in runs.items()},
        "ms_per_token": {name: one.ms_per_token for name, one in runs.items()},
        **told,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", type=Path, default=DEMO)
    parser.add_argument("--limit", type=int, help="only so many questions of each task")
    parser.add_argument("--prune", type=float, default=0.2)
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.config, arguments.limit, arguments.prune)))


if __name__ == "__main__":
    main()
