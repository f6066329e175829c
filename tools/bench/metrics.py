"""The cost of measuring: the same decoding with and without metrics, in turn, in one process.

`ratio` compares their times, pair by pair; on a machine that does other things as well it varies more than what it
measures. `share` adds up the processor time of every call that measures, over the time of the decoding: all of it
counts, also what happens while members compute, and what a scrape would count in the fuser's stead.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

from fusion.assembly.ensembles import build_ensemble
from fusion.core import Delta, End
from fusion.ensemble import Ensemble
from fusion.loop.fuser import Fuser
from fusion.loop.observer import Observer
from fusion.options import FusionParams, SamplingParams
from server.telemetry.metrics.catalogue import Catalogue
from server.telemetry.metrics.decoding import DecodingMetrics
from server.telemetry.metrics.exposition import describe, exposition, refresh
from server.telemetry.metrics.requests import RequestMetrics
from server.telemetry.record import Record
from tools.bench import models
from tools.bench.decode import load
from tools.bench.models import prompt

NEW_TOKENS = 64
FOLDERS = sorted((Path(__file__).parents[2] / "deploy" / "demo" / "models").iterdir())
DEMO = {folder.name: folder for folder in FOLDERS}  # the smallest models there are: the least favourable case


class Stopwatch:
    """Adds up the processor time of the calls that it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, call: Callable[..., None]) -> Callable[..., None]:
        def timed_call(*arguments: Any) -> None:
            began = thread_time()
            call(*arguments)
            self.seconds += thread_time() - began

        return timed_call

    def wrap(self, observer: Observer) -> Observer:
        for name in ("answered", "fused", "rolled_back"):
            setattr(observer, name, self.timed(getattr(observer, name)))
        return observer


def decode(
    fuser: Fuser, ensemble: Ensemble, batch: int, measured: RequestMetrics | None, watch: Stopwatch
) -> float:
    """Seconds that `batch` requests at once take; measured like the server's where there is something to do it."""
    left = threading.Semaphore(0)
    prompts = [ensemble.encode_text(prompt(16, i)) for i in range(batch)]
    began = perf_counter()
    for i in range(batch):
        record = None
        if measured is not None:
            record = Record(measured.on_tokens, id=str(i), method="POST", path="/v1/completions", status=200)
            record.begin(ensemble.name, 16, 1)

        def on_update(update: Delta, record: Record | None = record) -> None:
            if isinstance(update, End) and update.error is not None:
                raise update.error
            if record is not None and measured is not None:
                watch.timed(record.update)(0, update)
                if isinstance(update, End):
                    record.ended = perf_counter()
                    watch.timed(measured.ended)(record)
            if isinstance(update, End):
                left.release()

        sampling = SamplingParams(max_tokens=NEW_TOKENS, temperature=1.0, seed=i, ignore_eos=True)
        fuser.submit(ensemble, prompts[i], sampling, FusionParams(), on_update=on_update)
    for _ in range(batch):
        left.acquire()
    return perf_counter() - began


def run(
    folders: dict[str, Path], *, batches: tuple[int, ...] = (1, 16), pairs: int = 6
) -> dict[str, dict[str, float]]:
    """Measure; by batch the ratio with to without, the share, and milliseconds of a round and of a scrape."""
    running = load(folders, max(batches))
    ensemble = build_ensemble("bench", running, next(iter(running)))
    catalogue = Catalogue()
    ensembles = {"bench": ensemble}
    describe(catalogue, ensembles, "bench")
    watch = Stopwatch()
    observer, silent = watch.wrap(DecodingMetrics(catalogue, ensembles)), Observer()
    requests = RequestMetrics(catalogue, ensembles)
    fuser = Fuser({name: model.member for name, model in running.items()})
    fuser.start()
    results = {}
    try:
        for batch in batches:
            ratios, spent, rounds = [], 0.0, []
            for pair in range(pairs + 1):
                seconds = {}
                for on in (True, False) if pair % 2 else (False, True):
                    fuser.observer = observer if on else silent
                    watch.seconds = 0.0
                    seconds[on] = decode(fuser, ensemble, batch, requests if on else None, watch)
                    watch.timed(catalogue.settle)()
                    spent += watch.seconds if pair and on else 0.0
                if pair:  # the first warms up
                    ratios.append(seconds[True] / seconds[False])
                    rounds.append(seconds[True])
            began = perf_counter()
            refresh(catalogue, ensembles, fuser.load())
            exposition(catalogue, "")
            results[str(batch)] = {
                "ratio": statistics.median(ratios),
                "share": spent / sum(rounds),
                "round_ms": 1e3 * statistics.median(rounds) / NEW_TOKENS,
                "scrape_ms": 1e3 * (perf_counter() - began),
            }
    finally:
        fuser.stop()
    return results


def describe_row(name: str, batch: str, row: dict[str, float]) -> str:
    """A line for people."""
    return (
        f"{name}, {batch:>2} at once: {row['round_ms']:.1f} ms a round, {row['share']:.2%} of it in metrics; "
        f"{row['ratio']:.3f} x the time without; a scrape {row['scrape_ms']:.1f} ms"
    )


def main() -> None:
    results = {"demo": run(DEMO)}
    with tempfile.TemporaryDirectory() as scratch:
        results["random_30M"] = run(models.build(Path(scratch)))
    for name, rows in results.items():
        for batch, row in rows.items():
            print(describe_row(name, batch, row), flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
