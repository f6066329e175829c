"""Bits per byte of real models' fusion: a table by pivot, method of alignment, and weighting.

    python -m tools.bench.real FOLDER [--pivots NAME ...] [--methods NAME ...] [--first ROW] [--tasks FOLDER]

FOLDER holds checkpoints: folders, or GGUF files. A method is one of alignment, those that learn also with a
temperature, as in eva@0.05. Lower is better; the last line is JSON. Every model reads each text once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from alignment.methods.map_cache import MapCache, user_cache
from alignment.methods.registry import method_named
from fusion.options import FusionParams, Weighting
from tools.bench.real.fused import bits_of, ensemble_of
from tools.bench.real.scores import Scored, score
from tools.bench.real.texts import texts_of

TASKS = Path(__file__).resolve().parents[4] / "shared" / "tasks"
WAYS = {
    "equal": FusionParams(unmapped="pivot"),
    "equal, as published": FusionParams(),
    "equal, product": FusionParams(unmapped="pivot", combine="product"),
    "packllm-sim": FusionParams(unmapped="pivot", weighting=Weighting("packllm-sim")),
    "packllm-opt": FusionParams(unmapped="pivot", weighting=Weighting("packllm-opt")),
}


def table(
    scored: dict[str, Scored], pivots: list[str], methods: list[str], cache: MapCache
) -> dict[str, dict[str, dict[str, float]]]:
    """Bits per byte by pivot, method and way, printed as they come, with a mark where a token was impossible."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for pivot in pivots:
        for method in methods:
            ensemble = ensemble_of(scored, pivot, method, cache)
            bits = {way: bits_of(ensemble, scored, fusion) for way, fusion in WAYS.items()}
            found.setdefault(pivot, {})[method] = {way: one.per_byte for way, one in bits.items()}
            cells = (
                f"{way} {b.per_byte:.4f}" + " (impossible tokens!)" * bool(b.impossible) for way, b in bits.items()
            )
            print(f"{pivot:<20} {method:<10} {'  '.join(cells)}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--members", nargs="+", help="names of folders in FOLDER; by default all")
    parser.add_argument("--pivots", nargs="+", help="by default each member in turn")
    parser.add_argument("--methods", nargs="+", default=["exact", "prefix", "spelled"])
    parser.add_argument("--first", type=int, default=0, help="row of each file to begin at")
    parser.add_argument("--tasks", type=Path, default=TASKS)
    given = parser.parse_args()
    if not given.tasks.is_dir():
        raise SystemExit(f"{given.tasks} is no folder of task files: give --tasks.")
    for method in given.methods:
        method_named(method.partition("@")[0])
    found = {path.parent.name: path.parent for path in sorted(given.folder.glob("*/config.json"))}
    found |= {path.stem: path for path in given.folder.glob("*.gguf")}
    names = given.members or list(found)
    texts = texts_of(given.tasks, given.first)
    scored = {name: score(found[name], texts) for name in names}
    alone = {name: one.bits_per_byte for name, one in scored.items()}
    print("alone: " + ", ".join(f"{name} {bits:.4f}" for name, bits in alone.items()), flush=True)
    fused = table(scored, given.pivots or names, given.methods, MapCache(user_cache()))
    print(json.dumps({"texts": len(texts), "alone": alone, "fused": fused}))


if __name__ == "__main__":
    main()
