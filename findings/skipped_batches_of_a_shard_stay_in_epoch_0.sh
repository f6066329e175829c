#!/usr/bin/env bash
# accelerate: with several processes, a loader made by skip_first_batches never hears of its epoch.
#
# Software: accelerate 1.15.0, torch 2.13.0.
# Expected: training that is resumed in the middle of an epoch goes on with the rest of that epoch's order:
#   `skip_first_batches` gives the loader without its first batches, and `set_epoch`, which the loader has, chooses the
#   order that a sampler with a `set_epoch` of its own draws.
# Seen: with one process it does. With two the sampler stays in epoch 0, so the rest of epoch 1 is the rest of epoch 0's
#   order: some examples come twice and others not at all, without a warning. (Without skipping, two are right as well.)
# Source: accelerate looks for the sampler with `set_epoch` at the loader's batch sampler and one level below it; a
#   shard's batch sampler and the one that skips are two levels, and the sampler is the third.
# Exit status: 0 while the behaviour is as described, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check accelerate==1.15.0 torch==2.13.0 numpy
cat >"$folder/resumes.py" <<'PYTHON'
import accelerate
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader, Sampler


class Shuffled(Sampler):
    def __init__(self, count):
        self.count, self.epoch = count, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter(torch.randperm(self.count, generator=torch.Generator().manual_seed(self.epoch)).tolist())


def batches_of_epoch_1(processes, skipped):
    """The first process's batches, and the epoch that the sampler has been told."""
    sampler = Shuffled(24)
    loader = DataLoader(range(24), batch_size=2, sampler=sampler)
    loader = prepare_data_loader(loader, num_processes=processes, process_index=0, put_on_device=False)
    if skipped:
        loader = skip_first_batches(loader, skipped)
    loader.set_epoch(1)
    return [batch.tolist() for batch in loader], sampler.epoch


same = {}
for processes in (1, 2):
    whole, _ = batches_of_epoch_1(processes, 0)
    rest, epoch = batches_of_epoch_1(processes, 2)
    same[processes] = rest == whole[2:]
    print(f"accelerate {accelerate.__version__}, {processes} processes: epoch {epoch}, the rest is {rest[:3]}...", end=" ")
    print(f"and should be {whole[2:5]}...")
raise SystemExit(same != {1: True, 2: False})
PYTHON
"$folder/venv/bin/python" "$folder/resumes.py"
