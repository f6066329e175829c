"""Time per round of two source trees, in alternation: `python -m tools.bench.rounds BEFORE AFTER`.

Each tree runs in a process of its own, over the same three members of random parameters on the transformers
engine; they are asked in turns. `--size tiny` has members of one narrow layer, so that a round is mostly the
fuser's. Prints one JSON line: at 1 and at 16 sequences the medians in milliseconds, by the clock and of the
processor (of all threads, which tells the same on a machine that others use), and the median of each turn's ratio
of AFTER to BEFORE.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tools.bench import models
from tools.bench.processor import processor

SEQUENCES = (1, 16)
NARROW = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY = {"llama": NARROW | {"num_key_value_heads": 2}, "qwen2": NARROW | {"num_key_value_heads": 1}, "neox": NARROW}
# Runs in either tree: modules are found by either of their names.
CHILD = """
import importlib, json, sys, threading, time
from pathlib import Path
def find(*names):
    for name in names:
        module, _, attribute = name.rpartition(".")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError):
            continue
    raise SystemExit(f"{names} are not in this tree")
SamplingParams = find("fusion.options.SamplingParams", "fusion.core.SamplingParams")
build = find("server.loading.build")
read_settings = find("server.settings.read_settings", "server.settings.read.read_settings")
runtime = build(read_settings(Path(sys.argv[1]), {}))
runtime.fuser.start()
ensemble = runtime.ensembles["bench"]
prompt = ensemble.encode_text(sys.argv[2])
def timed(number, tokens):
    left, done = [number], threading.Event()
    def on_update(update):
        if getattr(update, "error", None):
            print(update.error, file=sys.stderr)
        if getattr(update, "finish", None) or getattr(update, "error", None):
            left[0] -= 1
            if not left[0]:
                done.set()
    began, before = time.perf_counter(), time.process_time()
    for _ in range(number):
        sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        runtime.fuser.submit(ensemble, prompt, sampling, ensemble.defaults, on_update=on_update)
    done.wait()
    spent = time.perf_counter() - began, time.process_time() - before
    return [seconds / tokens * 1000 for seconds in spent]
for line in sys.stdin:
    print(json.dumps(timed(*json.loads(line))), flush=True)
runtime.fuser.stop()
"""


def start(tree: Path, configuration: Path) -> subprocess.Popen[str]:
    """A process that answers each [sequences, tokens] with the milliseconds of a round."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-c", CHILD, str(configuration), models.prompt(40, 0)]
    return subprocess.Popen(
        command, cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def ask(process: subprocess.Popen[str], sequences: int, tokens: int) -> tuple[float, float]:
    """Milliseconds of a round, by the clock and of the processor."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{json.dumps([sequences, tokens])}\n")
    process.stdin.flush()
    elapsed, computed = json.loads(process.stdout.readline())
    return elapsed, computed


def compared(
    processes: dict[str, subprocess.Popen[str]], sequences: int, turns: int, tokens: int
) -> dict[str, Any]:
    """Medians of many turns; the first of them warms up and does not count."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in processes}
    for turn in range(turns + 1):
        order = list(processes) if turn % 2 else list(reversed(processes))
        for name in order:
            times[name].append(ask(processes[name], sequences, tokens))
    found: dict[str, Any] = {}
    for at, clock in enumerate(("elapsed", "processor")):
        of = {name: [one[at] for one in values[1:]] for name, values in times.items()}
        ratios = [after / before for before, after in zip(of["before"], of["after"], strict=True)]
        found[clock] = {
            **{name: round(statistics.median(values), 4) for name, values in of.items()},
            "ratio": round(statistics.median(ratios), 4),
            "quartiles": [round(one, 4) for one in statistics.quantiles(ratios, n=4)[::2]],
        }
    return found


def main() -> None:
    """Compare two trees."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--size", choices=("tiny", "small"), default="small")
    parser.add_argument(
        "--folder", type=Path, help="where the members are, or are built; a temporary one by default"
    )
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=40, help="of each sequence in a turn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        names = list(TINY)
        if not all((folder / name / "config.json").exists() for name in names):
            models.build(folder, TINY if options.size == "tiny" else models.SMALL)
        configuration = Path(temporary, "bench.yaml")
        members = {name: {"source": str((folder / name).resolve()), "dtype": "float32"} for name in names}
        ensemble = {"members": names, "pivot": names[0], "alignment": "exact", "weights": "uniform"}
        configuration.write_text(json.dumps({"models": members, "ensembles": {"bench": ensemble}}))
        processes = {name: start(getattr(options, name).resolve(), configuration) for name in ("before", "after")}
        result: dict[str, Any] = {"processor": processor(), "size": options.size}
        for sequences in SEQUENCES:
            result[str(sequences)] = compared(processes, sequences, options.turns, options.tokens)
        for process in processes.values():
            process.communicate()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
