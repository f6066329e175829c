#!/usr/bin/env bash
# accelerate: a launch with --cpu and --num_processes 2 runs the program once, alone.
#
# Software: accelerate 1.15.0, torch 2.13.0.
# Expected: two processes of one group, as torchrun starts them with --nproc_per_node 2, or a refusal.
# Seen: one process that takes itself for the only one (num_processes 1, distributed type NO) and exits with 0. The
#   number is used all the same: it sets the threads that each of the processes would get. A training that counts on two
#   devices takes half the batch for the whole, and ends like any other. torchrun starts both.
# Source: the launcher runs in several processes only what is a run on several devices of a kind it knows; processors
#   become one through MPI or a configuration file, never through --num_processes.
# Exit status: 0 while the behaviour is as described, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check accelerate==1.15.0 torch==2.13.0
cat >"$folder/who.py" <<'PYTHON'
from accelerate import PartialState

state = PartialState(cpu=True)
print(f"process {state.process_index} of {state.num_processes}, {state.distributed_type}", flush=True)
PYTHON
cd "$folder"
export HF_HOME="$folder/home" OMP_NUM_THREADS=1
launched=$(venv/bin/accelerate launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no \
    --dynamo_backend no who.py 2>/dev/null)
together=$(venv/bin/torchrun --nproc_per_node 2 who.py 2>/dev/null | sort)
printf 'accelerate %s\naccelerate launch:\n%s\ntorchrun:\n%s\n' \
    "$(venv/bin/python -c 'import accelerate; print(accelerate.__version__)')" "$launched" "$together"
[ "$launched" = "process 0 of 1, DistributedType.NO" ] || exit 1
[ "$together" = "process 0 of 2, DistributedType.MULTI_CPU
process 1 of 2, DistributedType.MULTI_CPU" ] || exit 1
