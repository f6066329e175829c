"""Times of an ensemble of real models: to the first token, and per token against its members'.

    python -m tools.bench.real.times [CONFIG]

Greedy answers of 64 tokens, one at a time, of every served model alone and of the first ensemble. The floor is the
sum of the members' own times. The last line is JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from pathlib import Path

from fusion.core import Delta, End
from fusion.ensemble import Ensemble
from fusion.loop.fuser import Fuser
from fusion.options import SamplingParams
from server.loading import build
from server.settings import read_settings
from tools.bench.processor import processor

CONFIG = Path(__file__).resolve().parents[3] / "deploy" / "real.yaml"
QUESTIONS = (
    "Why is the sky blue?",
    "Name three things that one needs to bake bread.",
    "What does a gardener do in spring?",
    "Explain in a few sentences how a bicycle stays upright.",
)
TOKENS = 64


def answered(fuser: Fuser, ensemble: Ensemble, question: str) -> tuple[float, float]:
    """Milliseconds to the first token, and for each one after it."""
    times: list[float] = []
    done = threading.Event()

    def listen(update: Delta) -> None:
        times.extend([time.perf_counter()] * len(update.tokens))
        if isinstance(update, End):
            done.set()

    fusion = ensemble.defaults
    began = time.perf_counter()
    prompt = ensemble.encode_chat([{"role": "user", "content": question}], locate=ensemble.scores(fusion))
    fuser.submit(ensemble, prompt, SamplingParams(max_tokens=TOKENS, temperature=0.0), fusion, on_update=listen)
    done.wait()
    return 1e3 * (times[0] - began), 1e3 * (times[-1] - times[0]) / max(1, len(times) - 1)


def main() -> None:
    settings = read_settings(Path(sys.argv[1]) if len(sys.argv) > 1 else CONFIG)
    runtime = build(settings)
    runtime.fuser.start()
    try:
        for ensemble in runtime.ensembles.values():
            answered(runtime.fuser, ensemble, QUESTIONS[0])
        rows = {
            name: [
                statistics.median(column)
                for column in zip(*(answered(runtime.fuser, one, q) for q in QUESTIONS), strict=True)
            ]
            for name, one in runtime.ensembles.items()
        }
    finally:
        runtime.fuser.stop()
    fused = next(iter(settings.ensembles))
    members = settings.ensembles[fused].members
    floor = [sum(rows[name][column] for name in members) for column in (0, 1)]
    for name, (first, each) in rows.items():
        print(f"{name:<12} {first:7.0f} ms to the first token, {each:6.1f} ms a token")
    ratios = [rows[fused][column] / floor[column] for column in (0, 1)]
    print(f"{fused} over its members' sum: {ratios[0]:.2f} to the first token, {ratios[1]:.2f} a token")
    print(json.dumps({"processor": processor(), "milliseconds": rows, "ratios": ratios}))


if __name__ == "__main__":
    main()
