"""EVA: vocabulary maps learned from embeddings (arXiv 2404.09492)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from alignment.errors import ConfigError
from alignment.learning.csls import nearest
from alignment.learning.vecmap import map_together, unit_
from alignment.vocab_map import VocabMap

# Rows of more entries than this whose scores differ by no more than the spread say nothing about the token.
_FLAT_ENTRIES = 5
_FLAT_SPREAD = 0.01


def learn_map(
    source_embeddings: ArrayLike,
    target_embeddings: ArrayLike,
    anchors: Sequence[tuple[int, int]] | NDArray[np.integer],
    *,
    top: int = 10,
    threshold: float = 0.1,
    special: Mapping[int, int] | None = None,
    device: str | torch.device = "cpu",
    on_progress: Callable[[float], None] | None = None,
) -> VocabMap:
    """Learn a map from one vocabulary into another, as EVA's published code does.

    The tables are brought into one space by `alignment.learning.vecmap.map_together`, from the anchors. A row of
    the map holds the at most `top` target tokens with the highest CSLS score (`alignment.learning.csls.nearest`)
    that reach `threshold`, weighted by that score. Rows of more than 5 entries whose scores have a population
    standard deviation of at most 0.01 are dropped. Computed in float32 on `device`, with the same result every
    time.

    Peculiarities of the authors' code are kept:

    * the source-side term of CSLS is missing, which leaves the order alone but shifts the threshold;
    * rows are not normalised, their sums lie between 0 and about 5;
    * special target tokens compete for the `top` places without the correction for hubs, often win them, and are
      then deleted: their rows have fewer entries.

    Args:
        source_embeddings: [Vs, d1], of the member.
        target_embeddings: [Vt, d2], of the pivot. The authors' code needs d1 = d2; here a wider table is projected
            on the directions it shares with the other.
        anchors: pairs (source id, target id) of tokens known to correspond, at least max(d1, d2) different ones.
        top: how many entries a row may have.
        threshold: the lowest score of an entry.
        special: source id -> target id of tokens that correspond by role; they get the single weight 1. The
            authors assume {0: 0, 1: 1, 2: 2}.
        device: where torch computes.
        on_progress: called with the share of the similarities that are computed, 0 to 1.

    Raises:
        ConfigError: nothing can be learned from these tables or anchors; one sentence.
    """
    special = special or {}
    source = _table(source_embeddings, "source", device)
    target = _table(target_embeddings, "target", device)
    sizes = (len(source), len(target))
    pairs = _pairs(anchors, sizes, (source.shape[1], target.shape[1]))
    _check_ids("special tokens", _as_pairs(list(special.items())), sizes)
    if top < 1 or not threshold > 0:
        raise ConfigError(
            f"A learned map needs top >= 1 and threshold > 0, not {top} and {threshold}: correct the "
            "configuration."
        )
    source, target = map_together(source, target, torch.from_numpy(pairs).to(device))
    special_rows = torch.tensor(list(special), dtype=torch.int64, device=device)
    special_columns = torch.tensor(list(special.values()), dtype=torch.int64, device=device)
    ids, scores = nearest(
        unit_(source),
        unit_(target),
        top=top,
        threshold=threshold,
        uncorrected=special_columns,
        near=torch.from_numpy(pairs).to(device),
        on_progress=on_progress,
    )
    ids[torch.isin(ids, special_columns)] = -1
    ids[_flat(ids, scores)] = -1
    ids[special_rows], scores[special_rows] = -1, 0.0
    ids[special_rows, 0], scores[special_rows, 0] = special_columns, 1.0
    return _packed(ids.cpu().numpy(), scores.cpu().numpy(), sizes[1])


def _packed(ids: NDArray[np.int64], scores: NDArray[np.float32], target_size: int) -> VocabMap:
    """A map of the entries with ids >= 0, moved to the left of their rows; R is the longest row, at least 1."""
    used = ids >= 0
    order = np.argsort(~used, axis=1, kind="stable")[:, : max(1, int(used.sum(axis=1).max(initial=0)))]
    weights = np.where(used, scores, np.float32(0))
    target_ids = np.take_along_axis(ids, order, axis=1).astype(np.int32)
    return VocabMap(target_ids, np.take_along_axis(weights, order, axis=1), target_size)


def _flat(ids: Tensor, scores: Tensor) -> Tensor:
    """The rows [Vs] bool whose many entries score about the same."""
    used = ids >= 0
    count = used.sum(dim=1)
    values = scores.double().masked_fill(~used, 0)
    mean = values.sum(dim=1, keepdim=True) / count.clamp(min=1)[:, None]
    variance = ((values - mean) ** 2).masked_fill(~used, 0).sum(dim=1) / count.clamp(min=1)
    return (count > _FLAT_ENTRIES) & (variance.sqrt() <= _FLAT_SPREAD)


def _table(embeddings: ArrayLike, side: str, device: str | torch.device) -> Tensor:
    """A copy [V, d] float32 on `device`, checked."""
    array = np.asarray(embeddings)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiu":
        raise ConfigError(
            f"The {side} embeddings must be a table of numbers with a row per token, not {array.dtype} of shape "
            f"{array.shape}: give the embedding matrix of the model."
        )
    table = torch.tensor(array, dtype=torch.float32, device=device)
    bad = int((~torch.isfinite(torch.linalg.vector_norm(table, dim=1))).sum())
    if bad:
        raise ConfigError(
            f"{bad} of the {len(table)} {side} embeddings contain NaN or infinity: check the checkpoint."
        )
    return table


def _pairs(
    anchors: Sequence[tuple[int, int]] | NDArray[np.integer], sizes: tuple[int, int], widths: tuple[int, int]
) -> NDArray[np.int64]:
    pairs = _as_pairs(anchors)
    _check_ids("anchors", pairs, sizes)
    for side, width, ids in zip(("source", "target"), widths, pairs.T, strict=True):
        if (different := len(np.unique(ids))) < width:
            raise ConfigError(
                f"There are too few anchors: {different} different {side} tokens, and a map of embeddings of "
                f"width {width} takes at least {width}; use an exact or mined map for vocabularies with so little "
                "in common."
            )
    return pairs


def _as_pairs(pairs: Sequence[tuple[int, int]] | NDArray[np.integer]) -> NDArray[np.int64]:
    array = np.asarray(pairs)
    if array.size == 0:
        return np.empty((0, 2), np.int64)
    if array.ndim != 2 or array.shape[1] != 2 or not np.issubdtype(array.dtype, np.integer):
        raise ConfigError(
            f"Anchors must be pairs of token ids, not {array.dtype} of shape {array.shape}: give a row "
            "of source id and target id for each."
        )
    return array.astype(np.int64)


def _check_ids(what: str, pairs: NDArray[np.int64], sizes: tuple[int, int]) -> None:
    for side, size, ids in zip(("source", "target"), sizes, pairs.T, strict=True):
        if ids.size and (ids.min() < 0 or ids.max() >= size):
            raise ConfigError(
                f"The {what} name {side} ids from {ids.min()} to {ids.max()}, but there are only {size} {side} "
                "embeddings: use the embeddings that belong to the tokenizer."
            )
