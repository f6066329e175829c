"""Time per round of two source trees, in alternation: `python -m tools.bench.rounds BEFORE AFTER`.

Each tree runs in processes of its own, over members of random parameters on the transformers engine, in turns.
Prints one JSON line with the medians in milliseconds and AFTER's ratio to BEFORE, at 1 and at 16 sequences.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

SEQUENCES = (1, 16)
TOKENS = 120
# Runs in either tree: modules are found by either of their names.
CHILD = """
import importlib, json, sys, threading, time
def find(*names):
    for name in names:
        module, _, attribute = name.rpartition(".")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError):
            continue
    raise SystemExit(f"{names} are not in this tree")
Fuser = find("fusion.loop.fuser.Fuser", "fusion.fuser.Fuser")
SamplingParams = find("fusion.options.SamplingParams", "fusion.core.SamplingParams")
build = find("server.loading.build")
read_settings = find("server.settings.read_settings", "server.settings.read.read_settings")
from pathlib import Path
path, counts, tokens = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
runtime = build(read_settings(path, {}))
runtime.fuser.start()
ensemble = next(e for e in runtime.ensembles.values() if len(e.models) > 1)
prompt = ensemble.encode_chat([{"role": "user", "content": "Where does the river go in winter?"}])
def timed(number):
    left, done = [number], threading.Event()
    def on_update(update):
        if getattr(update, "error", None):
            print(update.error, file=sys.stderr)
        if getattr(update, "finish", None) or getattr(update, "error", None):
            left[0] -= 1
            if not left[0]:
                done.set()
    began = time.perf_counter()
    for _ in range(number):
        sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        runtime.fuser.submit(ensemble, prompt, sampling, ensemble.defaults, on_update=on_update)
    done.wait()
    return (time.perf_counter() - began) / tokens * 1000
for line in sys.stdin:
    print(json.dumps(timed(int(line))), flush=True)
runtime.fuser.stop()
"""


def start(tree: Path, configuration: Path) -> subprocess.Popen[str]:
    """A process that answers each number of sequences with the milliseconds of a round."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-c", CHILD, str(configuration), json.dumps(SEQUENCES), str(TOKENS)]
    return subprocess.Popen(
        command, cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def ask(process: subprocess.Popen[str], sequences: int) -> float:
    """Milliseconds of a round."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{sequences}\n")
    process.stdin.flush()
    return float(json.loads(process.stdout.readline()))


def main() -> None:
    """Compare two trees."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--configuration", type=Path, default=Path("deploy/demo.yaml"))
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    configuration = options.configuration.resolve()
    trees = {"before": options.before.resolve(), "after": options.after.resolve()}
    processes = {name: start(tree, configuration) for name, tree in trees.items()}
    result: dict[str, Any] = {"processor_threads": os.cpu_count(), "tokens": TOKENS, "repeats": options.repeats}
    for sequences in SEQUENCES:
        times: dict[str, list[float]] = {name: [] for name in processes}
        for process in processes.values():
            ask(process, sequences)
        for turn in range(options.repeats):
            order = list(processes) if turn % 2 else list(reversed(processes))
            for name in order:
                times[name].append(ask(processes[name], sequences))
        medians = {name: statistics.median(values) for name, values in times.items()}
        result[str(sequences)] = {
            **{name: round(value, 4) for name, value in medians.items()},
            "ratio": round(medians["after"] / medians["before"], 4),
        }
    for process in processes.values():
        process.communicate()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
