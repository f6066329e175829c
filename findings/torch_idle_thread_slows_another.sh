#!/usr/bin/env bash
# torch: a thread that has computed once, and sleeps since, slows every small operation of another thread.
#
# Software: torch 2.13.0 (CPU build, with its own libgomp), on two processors.
# Expected: a thread that waits on a lock costs nothing, so a model decodes as fast on the thread that did not load it
#   as on the one that did.
# Seen: libgomp keeps a team of threads for every thread that has run a parallel region. Once the teams of all threads
#   count more than the processors, it stops letting them spin between regions, so each small multiplication of the thread
#   that works waits until its team has been woken: several times as long. After omp_pause_resource_all in
#   the idle thread, the time is what it was.
# Source: libgomp's manual on GOMP_SPINCOUNT ("more managed OpenMP threads than available CPUs").
# Exit status: 0 while the behaviour is as described, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
env -u OMP_NUM_THREADS -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT "$folder/venv/bin/python" - <<'PYTHON'
import ctypes
import os
import statistics
import sys
import threading
import time

if len(os.sched_getaffinity(0)) < 2:
    sys.exit("This needs two processors.")
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import torch

torch.set_num_threads(2)
torch.set_grad_enabled(False)
x, weights = torch.randn(4, 448), torch.randn(1216, 448)


def milliseconds() -> float:
    """The median time of a small multiplication."""
    times = []
    for _ in range(2000):
        began = time.perf_counter()
        torch.nn.functional.linear(x, weights)
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


computed, pause, paused, end = (threading.Event() for _ in range(4))


def once() -> None:
    torch.nn.functional.linear(x, weights)
    computed.set()
    pause.wait()
    ctypes.CDLL("libgomp.so.1").omp_pause_resource_all(1)
    paused.set()
    end.wait()


found = {}
milliseconds()
found["alone"] = milliseconds()
idle = threading.Thread(target=once)
idle.start()
computed.wait()
found["beside an idle thread that has computed"] = milliseconds()
pause.set()
paused.wait()
found["after that thread's team has ended"] = milliseconds()
end.set()
idle.join()
print("torch", torch.__version__, {name: f"{value:.3f} ms" for name, value in found.items()})
alone, beside, after = found.values()
sys.exit(0 if beside > 2 * alone and after < 1.5 * alone else 1)
PYTHON
