"""The speed benchmarks: `python -m tools.bench`, or `make bench`; prints one JSON object as its last line."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from tools.bench import align, decode, fuse, hosting, metrics, models, ttft, views
from tools.bench.processor import processor


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        print("decoding with three random models ...", flush=True)
        decoding = decode.run(models.build(Path(scratch)))
    for batch, row in decoding.items():
        share = row["share_of_round"]
        print(
            f"{batch:>3} sequences: {row['fused_ms_per_round']:.1f} ms a round, "
            f"{row['over_lockstep']:.2f} x the lockstep floor of {row['lockstep_ms_per_round']:.1f} ms, "
            f"{row['ratio']:.2f} x the members' own of {row['floor_ms_per_round']:.1f} ms; "
            f"fusion {share['fusion']:.1%}, sampling {share['sampling']:.1%}, "
            f"synchronisation {share['synchronisation']:.1%} of the time",
            flush=True,
        )
    fusing = fuse.run()
    print(f"one round of 16 sequences over 32k/131k/151k tokens: {fusing['total_ms']:.2f} ms", flush=True)
    measuring = metrics.run(metrics.DEMO)
    for batch, row in measuring.items():
        print(metrics.describe_row("demo", batch, row), flush=True)
    print("time to the first token with weights from the prompt ...", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        first = ttft.run(ttft.build(Path(scratch)))
    for length, row in first.items():
        told = ", ".join(f"{way} {one['ms']:.0f} ms ({one['ratio']:.2f} x)" for way, one in row.items())
        print(f"{length:>5} tokens: {told}", flush=True)
    hosted = hosting.run()
    for batch, row in hosted.items():
        print(hosting.describe_row(batch, row), flush=True)
    print("rounds over views of one model ...", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        viewing = views.run(Path(scratch))
    for sequences in views.SEQUENCES:
        row = viewing[str(sequences)]
        print(
            f"{sequences:>3} sequences: four views {row['views_ratio']} x, adapters {row['adapters_ratio']} x",
            flush=True,
        )
    print("learning a vocabulary map of 32k x 131k tokens ...", flush=True)
    aligning = align.run()
    print(f"{aligning['seconds']:.0f} s, {aligning['ratio']:.2f} x its matrix products")
    machine = {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    figures = {
        "decode": decoding,
        "fuse": fusing,
        "metrics": measuring,
        "ttft": first,
        "hosting": hosted,
        "views": viewing,
    }
    print(json.dumps({"machine": machine, **figures, "align": aligning}))


if __name__ == "__main__":
    main()
