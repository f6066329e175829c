"""SCE: merge fine-tuned models of one base, tensor by tensor (select, calculate, erase).

FuseChat (arXiv 2408.07990, section 3.4). A task is a model fine-tuned from the base, M of them; its delta is what
it changed. The entries where the deltas vary most decide how much each task counts, and deltas against the
majority's sign are erased. Beside it, for comparison: plain means (`linear`) and variation-ratio merging (`varm`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
Weights = NDArray[np.float64]
Variant = Literal["fusechat", "mergekit"]

CHUNK = 1 << 20
"""Entries that are worked on at once, so that intermediate results stay small beside the tensors."""

SMALLEST = 1e-6
"""mergekit's least denominator, and the summed mean square below which its weights are uniform."""

TABLES = ("embed_tokens", "lm_head")
"""Parts of the names of tensors with a row for each token; tasks may have added rows."""


def merge_tensor(
    base: ArrayLike, tasks: Sequence[ArrayLike], *, select: float = 1.0, variant: Variant
) -> tuple[Array, Weights]:
    """Merge one tensor. Computed in float32, or float64 where the base is, with sums in float64.

    Below `select` 1, the k = int(float32(select) * float32(n)) entries of the largest variance over the tasks
    count, n being those of any; the lowest positions among equals. A task's weight is the mean over all entries of
    its squared selected delta, normalised over the tasks. Signs are elected by the plain sum of deltas (minus only
    below 0); each entry then moves by the weighted mean of the deltas of that sign.

    Args:
        base: any shape and float dtype.
        tasks: M tensors of that shape; left unchanged.
        select: share of the entries, in [0, 1].
        variant: "fusechat" selects for the weights alone, and elects and merges all deltas; weights are uniform
            where no energy is selected. "mergekit" elects and merges the selected deltas only, clamps denominators
            at 1e-6 and makes weights uniform below that energy; where it selects nothing the tensor stays the
            base's.

    Returns:
        The merged tensor in the base's shape and dtype, and the tasks' weights [M] float64.

    Raises:
        ValueError: no tasks, another shape, `select` outside [0, 1], or an unknown variant.
    """
    _check(select, variant)
    original, changed = _same_shapes(base, tasks)
    deltas = _deltas(original, changed)
    chosen = _select(deltas, select) if select < 1 else None
    energy = np.array([_energy(delta, chosen) for delta in deltas]) / max(original.size, 1)
    floor = SMALLEST if variant == "mergekit" else 0.0
    uniform = energy.sum() < floor or energy.sum() == 0
    weights: Weights = np.full(len(deltas), 1 / len(deltas)) if uniform else energy / energy.sum()
    merged = original.reshape(-1).copy()
    for part in _parts(merged.size):
        if variant == "fusechat" or chosen is None:
            mask = np.array(True)
        elif chosen[part].any():
            mask = chosen[part]
        else:
            continue
        pieces = [np.where(mask, delta[part], 0) for delta in deltas]
        sign = np.where(sum(pieces) >= 0, 1, -1)
        moved, mass = np.zeros(len(sign)), np.zeros(len(sign))
        for piece, weight in zip(pieces, weights, strict=True):
            agrees = np.sign(piece) == sign
            moved += weight * np.where(agrees, piece, 0)
            mass += weight * agrees
        mass = mass.clip(min=SMALLEST) if variant == "mergekit" else np.where(mass == 0, 1, mass)
        merged[part] = merged[part] + moved / mass
    return merged.reshape(original.shape).astype(np.asarray(base).dtype), weights


def linear_tensor(base: ArrayLike, tasks: Sequence[ArrayLike]) -> tuple[Array, Weights]:
    """The plain mean of the tasks, in the base's dtype, and their equal weights [M]."""
    original, changed = _same_shapes(base, tasks)
    return _mean(base, original, changed, np.full(len(changed), 1 / len(changed)))


def varm_tensor(base: ArrayLike, tasks: Sequence[ArrayLike]) -> tuple[Array, Weights]:
    """The tasks' mean, weighted by the mean square of what each changed (FuseChat's VaRM), and those weights [M].

    Each task is compared with the base. Weights are uniform where any task changed nothing.
    """
    original, changed = _same_shapes(base, tasks)
    energy = np.array([_energy(delta, None) for delta in _deltas(original, changed)])
    weights = energy / energy.sum() if energy.all() else np.full(len(changed), 1 / len(changed))
    return _mean(base, original, changed, weights)


def merge(
    base: Mapping[str, ArrayLike],
    tasks: Sequence[Mapping[str, ArrayLike]],
    *,
    select: float = 1.0,
    variant: Variant,
) -> dict[str, Array]:
    """Merge whole models, {name: array}, tensor by tensor as `merge_tensor` does.

    A task's embed_tokens or lm_head that has more rows or columns is cropped to the base's shape. A task whose
    tensor has any other shape is left out of that tensor; where all are, and where the base's is not of a float
    dtype, it stays the base's. Tensors that only tasks have are dropped.

    Raises:
        ValueError: a task lacks a tensor of the base's, or as for `merge_tensor`.
    """
    _check(select, variant)
    merged = {}
    for name, values in base.items():
        own = np.asarray(values)
        for number, task in enumerate(tasks):
            if name not in task:
                raise ValueError(f"task {number} has no tensor {name!r}")
        fitting = [fit(name, np.asarray(task[name]), own.shape) for task in tasks]
        taking_part = [tensor for tensor in fitting if tensor is not None]
        if taking_part and np.issubdtype(own.dtype, np.floating):
            merged[name] = merge_tensor(own, taking_part, select=select, variant=variant)[0]
        else:
            merged[name] = own.copy()
    return merged


def crops(name: str, shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Return whether a task's tensor of this shape is cropped to the base's: a table smaller in no axis."""
    larger = len(shape) == len(wanted) and all(a >= b for a, b in zip(shape, wanted, strict=True))
    return larger and tuple(shape) != tuple(wanted) and any(table in name for table in TABLES)


def fit(name: str, tensor: Any, wanted: Sequence[int]) -> Any | None:
    """The part of a task's tensor that is merged into a base's of shape `wanted`; None where it is left out."""
    if tuple(tensor.shape) == tuple(wanted):
        return tensor
    return tensor[tuple(slice(0, size) for size in wanted)] if crops(name, tensor.shape, wanted) else None


def _check(select: float, variant: str) -> None:
    if not 0 <= select <= 1:
        raise ValueError(f"select must lie in [0, 1], not {select}")
    if variant not in get_args(Variant):
        raise ValueError(f"variant must be one of {', '.join(get_args(Variant))}, not {variant!r}")


def _same_shapes(base: ArrayLike, tasks: Sequence[ArrayLike]) -> tuple[Array, list[Array]]:
    """Base and tasks in the dtype that is computed in."""
    if not tasks:
        raise ValueError("there must be at least one task to merge")
    own = np.asarray(base)
    dtype = np.promote_types(own.dtype, np.float32)
    changed = [np.asarray(task).astype(dtype, copy=False) for task in tasks]
    for number, task in enumerate(changed):
        if task.shape != own.shape:
            raise ValueError(f"task {number} has shape {task.shape}, the base {own.shape}")
    return own.astype(dtype, copy=False), changed


def _deltas(original: Array, changed: Sequence[Array]) -> list[Array]:
    """The changes of each task, flat."""
    return [(task - original).reshape(-1) for task in changed]


def _parts(size: int) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, size, CHUNK)]


def _select(deltas: Sequence[Array], select: float) -> NDArray[np.bool_]:
    """Mark the entries of the largest population variance over the tasks, flat."""
    variance = np.empty(deltas[0].size, dtype=deltas[0].dtype)
    for part in _parts(variance.size):
        # Welford's steps: equal deltas have a variance of exactly 0, so they are never selected.
        mean, squares = np.zeros(len(variance[part])), np.zeros(len(variance[part]))
        for number, delta in enumerate(deltas, 1):
            piece = delta[part].astype(np.float64)
            away = piece - mean
            mean += away / number
            squares += away * (piece - mean)
        variance[part] = squares / len(deltas)
    k = int(np.float32(select) * np.float32(np.count_nonzero(variance)))
    if not k:
        return np.zeros(variance.shape, dtype=bool)
    limit = np.partition(variance, variance.size - k)[variance.size - k]
    chosen: NDArray[np.bool_] = variance > limit
    chosen[np.flatnonzero(variance == limit)[: k - np.count_nonzero(chosen)]] = True
    return chosen


def _energy(delta: Array, chosen: NDArray[np.bool_] | None) -> float:
    """Sum of the squares of the selected entries."""
    total = 0.0
    for part in _parts(delta.size):
        piece = delta[part].astype(np.float64)
        if chosen is not None:
            piece[~chosen[part]] = 0
        total += float(piece @ piece)
    return total


def _mean(base: ArrayLike, original: Array, changed: Sequence[Array], weights: Weights) -> tuple[Array, Weights]:
    merged = np.empty_like(original).reshape(-1)
    for part in _parts(merged.size):
        pieces = zip(weights, changed, strict=True)
        merged[part] = sum(weight * task.reshape(-1)[part].astype(np.float64) for weight, task in pieces)
    return merged.reshape(original.shape).astype(np.asarray(base).dtype), weights
