"""Merging checkpoint folders: tasks fine-tuned from one base become one checkpoint (see `sce` for the methods).

One tensor of each model is in memory at a time, and one shard of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from alignment.errors import ConfigError
from fusion.distill.checkpoint import (
    SHARD_BYTES,
    Checkpoint,
    Stored,
    copy_beside,
    read,
    write_weights,
    written_at_once,
)
from fusion.distill.sce import Variant, crops, linear_tensor, merge_tensor, varm_tensor
from fusion.distill.training.settings import Progress

Method = Literal["sce", "linear", "varm"]

FLOATS = ("F16", "BF16", "F32", "F64")


@dataclass
class MergeReport:
    """The outcome of a merge; tasks by their place in the order given.

    Attributes:
        tensors: in the result.
        weights: of each merged tensor, how much each task that took part counted.
        cropped: tables of which tasks have more rows or columns than the base, and which tasks.
        left_out: tensors that tasks have in another shape, and which tasks; the others were merged without them.
        unchanged: tensors that are the base's, as no task fits or they are not of a float dtype.
    """

    tensors: int = 0
    weights: dict[str, list[float]] = field(default_factory=dict)
    cropped: dict[str, list[int]] = field(default_factory=dict)
    left_out: dict[str, list[int]] = field(default_factory=dict)
    unchanged: list[str] = field(default_factory=list)


def merge_folders(
    base_folder: str | Path,
    task_folders: Sequence[str | Path],
    out_folder: str | Path,
    *,
    method: Method = "sce",
    select: float = 1.0,
    variant: Variant = "fusechat",
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> MergeReport:
    """Merge fine-tuned checkpoints of one base into a new folder, which appears complete or not at all.

    Computed in float32 (float64 where the base's tensor is), stored in the base's dtype; changes of 1e-4 of a
    weight need a float32 base, as bfloat16 cannot hold them. Configuration, generation settings, tokenizer and
    chat template are the base's. A base whose tables are tied is written without its output table; a task whose
    tables are tied lends its input table where the base has an output table of its own. Tables with more entries
    than the base's are cropped, see `sce.merge`.

    Args:
        base_folder: the checkpoint that all tasks started from.
        task_folders: at least one, of the same architecture.
        out_folder: new or empty.
        method: "sce" (see `sce.merge_tensor`), "linear" (the mean) or "varm" (`sce.varm_tensor`).
        select: of SCE.
        variant: of SCE.
        progress: called after every tensor with how many are done and how many there are.
        shard_bytes: largest size of a file of the result.

    Raises:
        ConfigError: a folder that cannot be read, merged or written; nothing is left behind.
        ValueError: an option outside its range.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, not {method!r}")
    if not 0 <= select <= 1 or variant not in get_args(Variant):
        raise ValueError(f"select must lie in [0, 1] and variant be one of {', '.join(get_args(Variant))}")
    if not task_folders:
        raise ConfigError("Name at least one task to merge into the base.")
    base = Checkpoint.open(base_folder)
    tasks = [Checkpoint.open(folder) for folder in task_folders]
    for task in tasks:
        _check_kinship(base, task)
    report = MergeReport(tensors=len(base.tensors))

    def made(own: Stored) -> torch.Tensor:
        tensor = merged(own)
        if progress is not None:
            progress(len(report.weights) + len(report.unchanged), report.tensors)
        return tensor

    def merged(own: Stored) -> torch.Tensor:
        original = read(own)
        taking_part = _taking_part(own, tasks, report) if own.dtype in FLOATS else []
        if not taking_part:
            report.unchanged.append(own.name)
            return original
        wide = torch.float64 if original.dtype == torch.float64 else torch.float32
        arrays = [tensor.to(wide).numpy() for tensor in (original, *(read(t, own.shape) for t in taking_part))]
        if method == "sce":
            result, weights = merge_tensor(arrays[0], arrays[1:], select=select, variant=variant)
        else:
            result, weights = (linear_tensor if method == "linear" else varm_tensor)(arrays[0], arrays[1:])
        if not np.isfinite(result).all():
            raise ConfigError(
                f"{own.name} would not be finite: a weight of the base or of a task is damaged; copy it again."
            )
        report.weights[own.name] = weights.tolist()
        return torch.from_numpy(result).to(original.dtype)

    with written_at_once(Path(out_folder).absolute()) as folder:
        copy_beside(base.folder, folder)
        write_weights(folder, base.tensors.values(), made, shard_bytes)
    return report


def _check_kinship(base: Checkpoint, task: Checkpoint) -> None:
    kinds = [model.config.get("model_type") for model in (base, task)]
    if kinds[0] != kinds[1]:
        raise ConfigError(
            f"{task.folder} is of model type {kinds[1]}, but the base {base.folder} of {kinds[0]}: "
            "merge models of one base."
        )
    missing = [name for name in base.tensors if task.find(name) is None]
    if missing:
        raise ConfigError(
            f"{task.folder} lacks {len(missing)} of the base's tensors, such as {min(missing)}: "
            "merge models of one base."
        )


def _taking_part(own: Stored, tasks: Sequence[Checkpoint], report: MergeReport) -> list[Stored]:
    """The tasks' tensors that are merged into the base's, the others noted in the report."""
    found = []
    for number, task in enumerate(tasks):
        stored = task.find(own.name)
        assert stored is not None
        if stored.dtype not in FLOATS:
            raise ConfigError(
                f"{own.name} of {task.folder} is of type {stored.dtype}, and merging needs floats: dequantise it."
            )
        if stored.shape != own.shape:
            if not crops(own.name, stored.shape, own.shape):
                report.left_out.setdefault(own.name, []).append(number)
                continue
            report.cropped.setdefault(own.name, []).append(number)
        found.append(stored)
    return found
