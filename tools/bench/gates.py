"""Accuracy of a gated ensemble and the passes it saves: `python -m tools.bench.gates [--questions 400]`.

The demo's questions, greedy, with `gate: confident` at several thresholds and margins. Prints a line for each,
and one JSON object at the end. Passes are the members' answers while decoding, all members together.
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fusion.core import Delta, End
from fusion.loop.observer import Observer
from fusion.options import FusionParams, SamplingParams
from server.commands.evaluate.questions import question_of
from server.commands.evaluate.scoring import is_right
from server.loading import build
from server.settings import read_settings
from tools.bench.drafts import DEMO
from tools.bench.processor import processor

THRESHOLDS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
MARGINS = (0.2, 0.5, 0.8, 0.95)


class Passes(Observer):
    """Counts the members' answers while decoding."""

    def __init__(self) -> None:
        self.count = 0

    def answered(self, member: str, step: float, prompts: Sequence[float], tokens: Sequence[float]) -> None:
        self.count += len(tokens)


def main() -> None:
    """Print the curve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=400)
    options = parser.parse_args()
    lines = (DEMO.parent / "demo" / "test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[:: max(1, len(lines) // options.questions)]][: options.questions]
    questions = [question_of(row, "test.jsonl") for row in rows]
    runtime = build(read_settings(DEMO, {}))
    ensemble = next(e for e in runtime.ensembles.values() if len(e.models) > 1)
    runtime.fuser.observer = passes = Passes()
    runtime.fuser.start()
    prompts = [ensemble.encode_chat([{"role": "user", "content": question.prompt}]) for question in questions]

    def measured(fusion: FusionParams) -> tuple[float, float]:
        """Accuracy in %, and passes per token."""
        texts, done, tokens = [""] * len(prompts), threading.Semaphore(0), [0]
        passes.count = 0

        def on_update(index: int, update: Delta) -> None:
            texts[index] += update.text
            tokens[0] += len(update.tokens)
            if isinstance(update, End):
                done.release()

        for index, prompt in enumerate(prompts):
            runtime.fuser.submit(
                ensemble,
                prompt,
                SamplingParams(max_tokens=64, temperature=0.0),
                fusion,
                on_update=lambda update, index=index: on_update(index, update),  # type: ignore[misc]
            )
            if index >= 16:
                done.acquire()
        for _ in prompts[-min(16, len(prompts)) :]:
            done.acquire()
        right = sum(is_right(question, text) for question, text in zip(questions, texts, strict=True))
        # The first token of an answer comes with the prompt.
        return 100 * right / len(prompts), passes.count / (tokens[0] - len(prompts))

    gates = {"none": ensemble.defaults}
    gates |= {f"threshold {t}": replace(ensemble.defaults, gate="confident", threshold=t) for t in THRESHOLDS}
    gates |= {
        f"margin {m}": replace(ensemble.defaults, gate="confident", threshold=0.0, margin=m) for m in MARGINS
    }
    curve: dict[str, Any] = {}
    for name, fusion in gates.items():
        accuracy, taken = measured(fusion)
        saved = 1 - taken / curve["none"]["passes_per_token"] if curve else 0.0
        curve[name] = {"accuracy": accuracy, "passes_per_token": round(taken, 3), "saved": round(saved, 3)}
        print(f"{name:>16}: {accuracy:.1f} % right, {taken:.2f} passes a token, {saved:.0%} saved", flush=True)
    runtime.fuser.stop()
    print(json.dumps({"processor": processor(), "questions": len(questions), "gates": curve}))


if __name__ == "__main__":
    main()
