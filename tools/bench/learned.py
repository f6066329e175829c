"""Learned weights against equal ones, PackLLM's and the members alone, and what they cost a request.

`python -m tools.bench.learned [--limit N] [--completions] [--out FOLDER] [CONFIG] [--tasks FILE]...` learns
weights as `tutti calibrate --learn-weights` does, prints its table by task, times how long the weights of a prompt
take, and prints one JSON object as its last line. With the zoo of `tools.zoo`: its `zoo.yaml`, its questions, and
`--completions`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from fusion.calibrate.asking import QUESTION, Form
from fusion.learned.weights import LearnedWeights
from server.commands.calibrate.command import calibrate
from server.commands.calibrate.learning import FILE
from server.commands.calibrate.report import NUMBERS
from server.commands.evaluate.questions import read_all
from server.settings import read_settings

DEMO = Path(__file__).parents[2] / "deploy" / "demo.yaml"
REPEATS = 20


def hot_path(learned: LearnedWeights, prompts: list[str]) -> dict[str, float]:
    """Milliseconds that the weights of a prompt take: the median, and the slowest of the prompts' fastest."""
    fastest = []
    for prompt in [*prompts, " ".join(prompts)]:  # the last is longer than what is read of it
        times = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            learned.weigh(prompt, learned.members)
            times.append(1e3 * (time.perf_counter() - began))
        fastest.append(min(times))
    return {"median": round(statistics.median(fastest), 3), "slowest": round(max(fastest), 3)}


def table(numbers: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By way of answering: points of 100 by task and over all, milliseconds per token, member passes per token."""
    found = {}
    for one in numbers["untouched"]:
        tokens = max(1, one["tokens"])
        tasks = {task: round(points, 1) for task, points in one["tasks"].items()}
        found[one["name"]] = tasks | {
            "mean": round(statistics.mean(one["tasks"].values()), 1),
            "ms_per_token": round(1e3 * one["seconds"] / tokens, 2),
            "passes_per_token": round(one["passes"] / tokens, 2),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=DEMO)
    parser.add_argument("--tasks", type=Path, action="append", help="by default those of the configuration")
    parser.add_argument("--limit", type=int, help="only so many questions of each task")
    parser.add_argument("--development", type=float, default=0.5)
    parser.add_argument("--completions", action="store_true")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--out", type=Path, help="by default a temporary folder")
    given = parser.parse_args()
    settings = read_settings(given.config)
    questions = read_all(given.tasks or [Path(task) for task in settings.evaluation.tasks], given.limit)
    with tempfile.TemporaryDirectory() as temporary:
        out = given.out or Path(temporary)
        calibrate(
            settings,
            None,
            questions,
            Form(QUESTION if given.completions else None, (), given.max_tokens),
            Console(width=160),
            out=out,
            seconds=given.seconds,
            development=given.development,
            seed=0,
            alignments=(next(iter(settings.ensembles.values())).alignment.method,),
            likelihood=False,
            learn=True,
        )
        numbers = json.loads((out / NUMBERS).read_text(encoding="utf-8"))
        learned = LearnedWeights.load(out / FILE)
        size = (out / FILE).stat().st_size
    spent = hot_path(learned, [question.prompt for question in questions])
    print(f"weights of a prompt: median {spent['median']} ms, slowest {spent['slowest']} ms; file {size:,} bytes")
    print(
        json.dumps({"table": table(numbers), "learned": numbers["learned"], "hot_path_ms": spent, "bytes": size})
    )


if __name__ == "__main__":
    main()
