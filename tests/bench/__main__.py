from __future__ import annotations

import json
import platform
import tempfile
from pathlib import Path

import torch

from tests.bench import decode, models


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        print("building three random models ...", flush=True)
        folders = models.build(Path(scratch))
        print("decoding ...", flush=True)
        results = {
            "machine": {
                "processor": platform.machine(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            },
            "decode": decode.run(folders),
        }
    for batch, row in results["decode"].items():
        share = row["share_of_round"]
        print(
            f"{batch:>3} sequences: {row['fused_ms_per_round']:.1f} ms a round, "
            f"floor {row['floor_ms_per_round']:.1f} ms, ratio {row['ratio']:.2f}; "
            f"fusion {share['fusing']:.1%}, synchronisation {share['synchronising']:.1%} of the time"
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
