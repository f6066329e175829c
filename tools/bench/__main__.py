"""The speed benchmarks: `python -m tools.bench [PART ...]`, or `make bench`; the last line is one JSON object."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tools.bench import align, decode, fuse, hosting, metrics, models, ttft, views
from tools.bench.processor import processor


def _decode() -> dict[str, Any]:
    print("decoding with three random models ...", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        rows = decode.run(models.build(Path(scratch)))
    for batch, row in rows.items():
        share = row["share_of_round"]
        print(
            f"{batch:>3} sequences: {row['fused_ms_per_round']:.1f} ms a round, "
            f"{row['over_lockstep']:.2f} x the lockstep floor of {row['lockstep_ms_per_round']:.1f} ms, "
            f"{row['ratio']:.2f} x the members' own of {row['floor_ms_per_round']:.1f} ms; "
            f"fusion {share['fusion']:.1%}, sampling {share['sampling']:.1%}, "
            f"synchronisation {share['synchronisation']:.1%} of the time",
            flush=True,
        )
    return rows


def _fuse() -> dict[str, Any]:
    row = fuse.run()
    print(f"one round of 16 sequences over 32k/131k/151k tokens: {row['total_ms']:.2f} ms", flush=True)
    return row


def _metrics() -> dict[str, Any]:
    rows = metrics.run(metrics.DEMO)
    for batch, row in rows.items():
        print(metrics.describe_row("demo", batch, row), flush=True)
    return rows


def _ttft() -> dict[str, Any]:
    print("time to the first token with weights from the prompt ...", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        rows = ttft.run(ttft.build(Path(scratch)))
    for length, row in rows.items():
        told = ", ".join(f"{way} {one['ms']:.0f} ms ({one['ratio']:.2f} x)" for way, one in row.items())
        print(f"{length:>5} tokens: {told}", flush=True)
    return rows


def _hosting() -> dict[str, Any]:
    rows = hosting.run()
    for batch, row in rows.items():
        print(hosting.describe_row(batch, row), flush=True)
    return rows


def _views() -> dict[str, Any]:
    print("rounds over views of one model ...", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        rows = views.run(Path(scratch))
    for sequences in views.SEQUENCES:
        row = rows[str(sequences)]
        print(
            f"{sequences:>3} sequences: four views {row['views_ratio']} x, adapters {row['adapters_ratio']} x",
            flush=True,
        )
    return rows


def _align() -> dict[str, Any]:
    print("learning a vocabulary map of 32k x 131k tokens ...", flush=True)
    row = align.run()
    print(f"{row['seconds']:.0f} s, {row['ratio']:.2f} x its matrix products")
    return row


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "decode": _decode,
    "fuse": _fuse,
    "metrics": _metrics,
    "ttft": _ttft,
    "hosting": _hosting,
    "views": _views,
    "align": _align,
}


def main(chosen: list[str]) -> None:
    if unknown := set(chosen) - set(PARTS):
        sys.exit(f"No part is called {', '.join(sorted(unknown))}: take some of {', '.join(PARTS)}.")
    figures = {name: part() for name, part in PARTS.items() if not chosen or name in chosen}
    machine = {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({"machine": machine, **figures}))


if __name__ == "__main__":
    main(sys.argv[1:])
