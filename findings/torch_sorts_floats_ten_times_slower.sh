#!/usr/bin/env bash
# torch: on a CPU, a stable argsort of float32 takes about ten times that of the same numbers as whole numbers.
#
# Software: torch 2.13.0.
# Expected: numbers of 32 bits are sorted in less time than numbers of 64 bits, whatever their type.
# Seen: 250,000 positive float32 take nine to ten times the time of their bits, widened to int64, which have the same
#   order (21 ms against 2.3 ms on two cores). So top-k code that merges candidates is faster through integers.
# Source: torch has a parallel radix sort for whole numbers of one dimension in ascending order; floats, and any
#   descending order, are compared pair by pair in one thread.
# Exit status: 0 while the behaviour is as described (at least three times as long), 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat >"$folder/sorts.py" <<'PYTHON'
import time

import torch

scores = torch.rand(250_000, generator=torch.Generator().manual_seed(0))


def floats():
    return scores.argsort(stable=True)


def whole():
    return scores.view(torch.int32).long().argsort(stable=True)


def milliseconds(run):
    taken = []
    for _ in range(9):
        began = time.perf_counter()
        run()
        taken.append(1e3 * (time.perf_counter() - began))
    return min(taken)


assert torch.equal(floats(), whole())
slow, fast = milliseconds(floats), milliseconds(whole)
print(f"torch {torch.__version__}: {slow:.1f} ms as float32, {fast:.1f} ms as whole numbers, the same order")
raise SystemExit(slow < 3 * fast)
PYTHON
"$folder/venv/bin/python" "$folder/sorts.py"
