"""Accuracy and cost of weights from the prompt on the demo's held-out questions.

Accuracy per task and cost per token by each way of weighting, and whether a member that understands a prompt
answers it well. `python -m tools.bench.packllm [--limit N] [--timed N] [--prune P] [--combine C] [CONFIG]` prints
tables and, as its last line, one JSON object.

Cost is in members that ran for a token, and in seconds: the ways of weighting answer the same questions in turns,
one sequence at a time and as many as `tutti eval` asks for. How long prompts alone take is measured in the same
turns, by answers of one token; what remains is decoding.
"""

from __future__ import annotations

import argparse
import json
import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from fusion.assembly.ensembles import build_ensemble, build_for_any_pivot
from fusion.core import Delta, End
from fusion.ensemble import Ensemble
from fusion.loop.fuser import Fuser
from fusion.options import Combine, FusionParams, SamplingParams, Weighting
from fusion.prompt.scoring import PrefixScores
from fusion.step import COMBINATIONS
from server.commands.evaluate.questions import Question, read_all
from server.commands.evaluate.scoring import is_right
from server.loading import build
from server.settings import read_settings

DEMO = Path(__file__).parents[2] / "deploy" / "demo.yaml"
MAX_TOKENS = 96
AT_A_TIME = 16  # as `tutti eval`
PART = 4  # questions of a turn, times as many as there are at a time
TURNS = 3


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
    """All answers of one way of weighting, and the seconds they took together."""

    answers: list[Answer]
    seconds: float

    @property
    def tokens(self) -> int:
        return sum(len(answer.members) for answer in self.answers)

    def accuracy(self, task: str | None = None) -> float:
        return float(np.mean([a.right for a in self.answers if task in (None, a.question.task)]))

    @property
    def members_per_token(self) -> float:
        return float(np.mean([count for answer in self.answers for count in answer.members]))


@dataclass(frozen=True)
class Cost:
    """Milliseconds per token: of decoding, and of everything."""

    decoding: float
    whole: float


Way = tuple[Ensemble, Weighting]


def costs(fuser: Fuser, ways: dict[str, Way], questions: Sequence[Question], at_a_time: int) -> dict[str, Cost]:
    """The cost of each way for the same questions, `at_a_time` at a time; in every turn another one is first.

    For each part of the questions the fastest of several turns counts, for the prompts (answers of a single token)
    and for everything, since other work on the machine only adds time.
    """
    names, parts = [*ways], max(1, len(questions) // (PART * at_a_time))
    prompts, whole, tokens = Counter[str](), Counter[str](), Counter[str]()
    for part in range(parts):
        fastest = {name: [math.inf, math.inf] for name in names}
        for turn in range(part, part + TURNS):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                for i, longest in enumerate((1, MAX_TOKENS)):
                    asked = questions[part::parts]
                    run = ask(fuser, *ways[name], asked, at_a_time=at_a_time, max_tokens=longest)
                    fastest[name][i] = min(fastest[name][i], run.seconds)
                tokens[name] += run.tokens if turn == part else 0
        for name, (first, all_of_it) in fastest.items():
            prompts[name] += first
            whole[name] += all_of_it
    return {
        name: Cost(
            1e3 * (whole[name] - prompts[name]) / (tokens[name] - len(questions)), 1e3 * whole[name] / tokens[name]
        )
        for name in names
    }


def ask(
    fuser: Fuser,
    ensemble: Ensemble,
    weighting: Weighting,
    questions: Sequence[Question],
    *,
    at_a_time: int = AT_A_TIME,
    max_tokens: int = MAX_TOKENS,
) -> Run:
    """All questions greedily, some at a time; no prompt has been read before."""
    fuser.prefixes = PrefixScores()
    fusion = FusionParams(
        weighting=weighting,
        combine=ensemble.defaults.combine,
        filter_top=ensemble.defaults.filter_top,
        report=True,
    )
    answers = [Answer(question) for question in questions]
    places = threading.Semaphore(at_a_time)
    errors: list[Exception] = []

    def listener(answer: Answer):
        def on_update(update: Delta) -> None:
            answer.texts.append(update.text)
            if not isinstance(update, End):
                return
            if isinstance(update, End) and update.error is not None:
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
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        fuser.submit(ensemble, prompt, sampling, fusion, on_update=listener(answer))
    for _ in range(at_a_time):
        places.acquire()
    if errors:
        raise errors[0]
    return Run(answers, time.perf_counter() - began)


def correlation(alone: dict[str, Run], scored: Run, tasks: Sequence[str]) -> dict[str, Any]:
    """Spearman's rank correlation of a member's mean log perplexity with its accuracy, over tasks x members.

    Texts of some tasks are harder to predict for all members; `within_tasks` are with each
    task's mean taken off both.
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


def ways_of(ensemble: Ensemble, combine: Combine, threshold: float) -> dict[str, Way]:
    """The ways of weighting that are compared, equal weights first."""
    defaults = replace(ensemble.defaults, combine=combine, weights=None)
    fixed = replace(ensemble, defaults=defaults)
    by_prompt = build_for_any_pivot("auto", ensemble.models, defaults=defaults)
    sim, opt = Weighting("packllm-sim"), Weighting("packllm-opt")
    return {
        "uniform": (fixed, Weighting()),
        "top1": (fixed, Weighting("top1")),
        "packllm-sim": (fixed, sim),
        "packllm-opt": (fixed, opt),
        f"packllm-sim, prune {threshold:g}": (fixed, replace(sim, prune=threshold)),
        f"packllm-opt, prune {threshold:g}": (fixed, replace(opt, prune=threshold)),
        "packllm-opt, pivot auto": (by_prompt, opt),
    }


def run(
    config: Path, limit: int | None, timed: int, threshold: float, combinations: Sequence[Combine]
) -> dict[str, Any]:
    """Measure, and print tables."""
    settings = read_settings(config)
    paths = [Path(task) for task in settings.evaluation.tasks]
    questions, part = read_all(paths, limit), read_all(paths, timed)
    runtime = build(settings)
    fuser, ensemble = runtime.fuser, runtime.ensembles[next(iter(settings.ensembles))]
    tasks = list(dict.fromkeys(question.task for question in questions))
    fuser.start()
    try:
        alone = {
            name: ask(fuser, build_ensemble(name, {name: model}, name), Weighting(), questions)
            for name, model in ensemble.models.items()
        }
        runs, told = {}, defaultdict[str, dict[int, Cost]](dict)
        for combine in combinations:
            ways = ways_of(ensemble, combine, threshold)
            runs |= {f"{combine}: {name}": ask(fuser, *way, questions) for name, way in ways.items()}
            for at_a_time in (1, AT_A_TIME) if part else ():
                for name, cost in costs(fuser, ways, part, at_a_time).items():
                    told[f"{combine}: {name}"][at_a_time] = cost
    finally:
        fuser.stop()
    for name, one in (alone | runs).items():
        scores = "  ".join(f"{task} {100 * one.accuracy(task):5.1f}" for task in tasks)
        print(f"{name:<36} {scores}  all {100 * one.accuracy():5.1f}  members/token {one.members_per_token:.2f}")
    print("ms per token (and in relation to uniform), of decoding and of everything")
    for name, by_batch in told.items():
        reference = told[f"{name.partition(':')[0]}: uniform"]
        cells = [
            f"{at_a_time} at a time {own:5.2f} ({own / of_uniform:.2f})"
            for at_a_time, cost in by_batch.items()
            for own, of_uniform in (
                (cost.decoding, reference[at_a_time].decoding),
                (cost.whole, reference[at_a_time].whole),
            )
        ]
        print(f"{name:<36} {'  '.join(cells)}")
    correlated = correlation(alone, runs[f"{combinations[-1]}: packllm-sim"], tasks)
    print(
        f"rank correlation of log perplexity and accuracy: {correlated['rank_correlation']:.2f} "
        f"(p = {correlated['p']:.2f})"
    )
    print(
        f"with each task's mean taken off: {correlated['rank_correlation_within_tasks']:.2f} "
        f"(p = {correlated['p_within_tasks']:.2f}); the best member has the lowest loss in "
        f"{correlated['tasks_whose_best_member_has_the_lowest_loss']} of {len(tasks)} tasks"
    )
    return {
        "questions": len(questions),
        "questions_timed": len(part),
        "accuracy": {
            name: {task: one.accuracy(task) for task in tasks} | {"all": one.accuracy()}
            for name, one in (alone | runs).items()
        },
        "members_per_token": {name: one.members_per_token for name, one in runs.items()},
        "ms_per_token": {
            name: {at_a_time: asdict(cost) for at_a_time, cost in by_batch.items()}
            for name, by_batch in told.items()
        },
        **correlated,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", type=Path, default=DEMO)
    parser.add_argument("--limit", type=int, help="only so many questions of each task")
    parser.add_argument("--timed", type=int, default=16, help="questions of each task that are timed; 0 for none")
    parser.add_argument("--prune", type=float, default=0.3)
    parser.add_argument("--combine", choices=COMBINATIONS, action="append", help="by default each in turn")
    given = parser.parse_args()
    combinations = given.combine or list(COMBINATIONS)
    print(json.dumps(run(given.config, given.limit, given.timed, given.prune, combinations)))


if __name__ == "__main__":
    main()
