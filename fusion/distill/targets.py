"""Targets: the sparse distributions a student is trained towards, which source they come from, and the loss.

FuseChat (arXiv 2408.07990, sections 3.2 and 3.3). A target is the k best ids of a position and their
probabilities; it never becomes a row over the vocabulary. L is positions, k and K entries of a position, B
sequences.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fusion.distill.loss import PADDING, REST, fusion_loss

__all__ = ["PADDING", "REST", "choose", "fusion_loss", "target_probabilities"]

Probabilities = NDArray[np.float32]
Ids = NDArray[np.int32]


def target_probabilities(
    logits: ArrayLike,
    ids: ArrayLike,
    *,
    temperature: float = 1.0,
    own: tuple[ArrayLike, ArrayLike] | None = None,
    normalisers: ArrayLike | None = None,
    own_normalisers: ArrayLike | None = None,
) -> tuple[Probabilities, Ids]:
    """Probabilities of each position's entries at a temperature.

    The k best leave mass out: ten of them hold about four fifths at temperature 1 and a fifth at temperature 2,
    and the published softmax over a row's own entries hides that. With `normalisers` each row gets one entry more,
    id `REST`, which holds what its entries leave out; `fusion_loss` compares it with what the student leaves out.

    Args:
        logits: [L,k], in natural-log units; -inf at padding.
        ids: [L,k] int; negative at padding. An entry counts where its id is >= 0 and its logit above -inf.
        temperature: T > 0.
        own: (logits [L,k2], ids [L,k2]) of the pivot itself; a row without entries takes this one's.
        normalisers: [L] logsumexp(row / T) of the full rows that `logits` come from.
        own_normalisers: [L] likewise for `own`; needed where both are given.

    Returns:
        probabilities [L,K] float32 and ids [L,K] int32, K = max(k, k2), or one more with `normalisers`. Rows sum
        to 1; padding has probability 0 and id -1. A row that is empty on both sides is all padding.
    """
    if not temperature > 0 or not np.isfinite(temperature):
        raise ValueError(f"temperature must be a positive number, not {temperature}")
    values, names = _rows(logits, ids, "logits and ids")
    totals = None if normalisers is None else _totals(normalisers, len(values))
    if own is not None:
        own_values, own_names = _rows(*own, "own logits and ids")
        if len(own_values) != len(values):
            raise ValueError(f"own has {len(own_values)} positions, the targets {len(values)}")
        width = max(values.shape[1], own_values.shape[1])
        empty = np.logical_not(np.isfinite(values).any(axis=1))[:, None]
        values = np.where(empty, _widen(own_values, width, -np.inf), _widen(values, width, -np.inf))
        names = np.where(empty, _widen(own_names, width, PADDING), _widen(names, width, PADDING))
        if totals is not None:
            if own_normalisers is None:
                raise ValueError("own_normalisers must be given where both own and normalisers are")
            totals = np.where(empty[:, 0], _totals(own_normalisers, len(values)), totals)
    scaled = values / temperature
    filled = np.isfinite(scaled).any(axis=1)
    if totals is None:
        largest = np.where(filled, scaled.max(axis=1, initial=-np.inf), 0.0)
        mass = np.exp(scaled - largest[:, None])
        mass[filled] /= mass[filled].sum(axis=1, keepdims=True)
        return mass.astype(np.float32), names
    mass = np.exp(scaled - totals[:, None])
    rest = np.where(filled, 1.0 - mass.sum(axis=1), 0.0)
    if (rest < -1e-3).any():
        raise ValueError(
            "normalisers must be logsumexp(full row / temperature), but entries hold more than all mass"
        )
    rest = rest.clip(min=0.0)
    mass[filled] /= (mass.sum(axis=1) + rest)[filled, None]  # takes rounding out, so that rows sum to 1
    rest_ids = np.where(filled, REST, PADDING).astype(np.int32)
    return np.column_stack([mass, rest]).astype(np.float32), np.column_stack([names, rest_ids])


def choose(pivot_losses: ArrayLike, source_losses: ArrayLike) -> NDArray[np.bool_]:
    """Return True [B] where the source's targets are taken: its loss on the sequence is strictly smaller.

    MinCE (FuseLLM, equation 4) per sequence. A loss that is not a number never wins against one that is.
    """
    pivot, source = np.asarray(pivot_losses, dtype=np.float64), np.asarray(source_losses, dtype=np.float64)
    if pivot.shape != source.shape:
        raise ValueError(f"there are {pivot.shape} losses of the pivot and {source.shape} of the source")
    return (source < pivot) | (np.isnan(pivot) & ~np.isnan(source))


def _rows(logits: ArrayLike, ids: ArrayLike, what: str) -> tuple[NDArray[np.float64], Ids]:
    """Logits [L,k] float64 and ids [L,k] int32, where what does not count is -inf and -1 on both sides."""
    values, names = np.asarray(logits, dtype=np.float64), np.asarray(ids, dtype=np.int32)
    if values.ndim != 2 or values.shape != names.shape:
        raise ValueError(f"{what} must both be [L,k], not {values.shape} and {names.shape}")
    counts = (names >= 0) & (values > -np.inf)
    if not np.isfinite(values[counts]).all():
        raise ValueError(f"{what} hold a logit that is not finite beside a token")
    return np.where(counts, values, -np.inf), np.where(counts, names, np.int32(PADDING))


def _totals(normalisers: ArrayLike, positions: int) -> NDArray[np.float64]:
    totals = np.asarray(normalisers, dtype=np.float64)
    if totals.shape != (positions,) or not np.isfinite(totals).all():
        raise ValueError(f"normalisers must be {positions} finite numbers, one for each position")
    return totals


def _widen(rows: NDArray[Any], width: int, padding: float) -> NDArray[Any]:
    return np.pad(rows, ((0, 0), (0, width - rows.shape[1])), constant_values=padding)
