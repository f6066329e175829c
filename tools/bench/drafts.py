"""Time per token with drafts over plain rounds, on the demo: `python -m tools.bench.drafts [--questions 40]`.

Both run in one process, in turns. Prints one JSON line: the share of answers that are the same, and by drafter and
number of sequences the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusion.core import Delta, End
from fusion.options import FusionParams, SamplingParams
from server.loading import build
from server.settings import read_settings

DEMO = Path(__file__).resolve().parents[2] / "deploy" / "demo.yaml"


class Bench:
    """The demo's ensemble, asked a batch of prompts at a time."""

    def __init__(self) -> None:
        self.runtime = build(read_settings(DEMO, {}))
        self.runtime.fuser.start()
        self.ensemble = next(e for e in self.runtime.ensembles.values() if len(e.models) > 1)

    def run(self, prompts: list[str], fusion: FusionParams, tokens: int) -> tuple[list[str], float]:
        """The answers, and the seconds that a token took each sequence."""
        texts, done = [""] * len(prompts), threading.Semaphore(0)
        lengths = [0] * len(prompts)

        def on_update(index: int, update: Delta) -> None:
            texts[index] += update.text
            lengths[index] += len(update.tokens)
            if isinstance(update, End):
                done.release()

        began = time.perf_counter()
        for index, prompt in enumerate(prompts):
            self.runtime.fuser.submit(
                self.ensemble,
                self.ensemble.encode_chat([{"role": "user", "content": prompt}]),
                SamplingParams(max_tokens=tokens, temperature=0.0),
                fusion,
                on_update=lambda update, index=index: on_update(index, update),  # type: ignore[misc]
            )
        for _ in prompts:
            done.acquire()
        return texts, (time.perf_counter() - began) / (sum(lengths) / len(lengths))


def main() -> None:
    """Compare every drafter with none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=400)
    options = parser.parse_args()
    bench = Bench()
    lines = (DEMO.parent / "demo" / "test.jsonl").read_text().splitlines()[: options.questions]
    questions = [json.loads(line)["prompt"] for line in lines]
    plain = bench.ensemble.defaults
    ways = {"plain": plain, **{draft: replace(plain, draft=draft) for draft in ("auto", "ngram")}}
    result: dict[str, Any] = {"processor_threads": os.cpu_count(), "questions": len(questions)}
    for sequences in (1, 16):
        times: dict[str, list[float]] = {way: [] for way in ways}
        same: dict[str, list[bool]] = {way: [] for way in ways}
        for at in range(0, len(questions), sequences):
            asked = questions[at : at + sequences]
            answers = {}
            for way, fusion in ways.items():
                answers[way], seconds = bench.run(asked, fusion, 64)
                times[way].append(seconds)
            for way in ways:
                same[way] += [a == b for a, b in zip(answers[way], answers["plain"], strict=True)]
        base = statistics.median(times["plain"])
        result[str(sequences)] = {
            way: {"ratio": round(statistics.median(values) / base, 3), "same": statistics.mean(same[way])}
            for way, values in times.items()
        } | {"plain_ms": round(base * 1000, 3)}
    bench.runtime.fuser.stop()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
