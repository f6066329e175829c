"""The nearest target rows of every source row, corrected for hubs (CSLS), without the full matrix in memory."""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt

import torch
from torch import Tensor

_CELLS = 1 << 21  # similarities held at a time: 8 MiB, which stay in the cache while they are looked at
_GROUP = 32  # similarities in a row whose highest is looked at first: few groups hold any that matter
_SLACK = 1e-5  # of the first look at a score, which rounds otherwise than the second


def nearest(
    source: Tensor,
    target: Tensor,
    *,
    top: int,
    threshold: float,
    uncorrected: Tensor,
    on_progress: Callable[[float], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """The `top` best target rows of each source row among those that score at least `threshold`.

    source: [Vs, m] float32, target: [Vt, m] float32, both of unit rows. `uncorrected`: target rows without the
    correction. The score is 2 cos(i, j) - r(j), where r(j) is the highest cosine of j to any source row: CSLS
    with a neighbourhood of 1 and without the source-side term, as EVA's authors compute it.

    Returns ids [Vs, top] int64 and scores [Vs, top] float32, best first, the lower id first among equals; -1
    and -inf where fewer rows reach the threshold. `on_progress` is called with the share of the work done, 0 to 1.

    One pass over the product, in squares. r(j) is known once row j has met every source row; until then the
    highest cosine so far bounds it from below, so only what can still reach `threshold` is kept of a square, and
    scored when its target rows have met all.
    """
    rows, side = len(source), max(1, isqrt(_CELLS))
    ids = source.new_full((rows, top), -1, dtype=torch.int64)
    scores = source.new_full((rows, top), -torch.inf)
    space = source.new_empty(side * side)
    corrected = torch.ones(len(target), dtype=torch.bool, device=target.device)
    corrected[uncorrected] = False
    for start in range(0, len(target), side):
        block = target[start : start + side]
        highest = source.new_full((len(block),), -1.0)
        counts = corrected[start : start + side]
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for left in range(0, rows, side):
            part = source[left : left + side]
            cosines = torch.mm(block, part.mT, out=space[: len(block) * len(part)].view(len(block), -1))
            whole = len(part) // _GROUP * _GROUP
            groups = cosines[:, :whole].view(len(block), whole // _GROUP, _GROUP)
            rest = cosines[:, whole:]
            maxima = groups.amax(dim=2)
            highest = torch.maximum(highest, torch.cat([maxima, rest], dim=1).amax(dim=1))
            lowest = (highest * counts + (threshold - _SLACK)) / 2
            column, group = (maxima >= lowest[:, None]).nonzero(as_tuple=True)
            members = groups[column, group]
            which, place = (members >= lowest[column, None]).nonzero(as_tuple=True)
            found.append((group[which] * _GROUP + place + left, column[which], members[which, place]))
            column, place = (rest >= lowest[:, None]).nonzero(as_tuple=True)
            found.append((place + whole + left, column, rest[column, place]))
        row, column, cosine = (torch.cat(parts) for parts in zip(*found, strict=True))
        score = 2 * (cosine - (highest * counts)[column] / 2)
        enters = (score >= torch.where(scores[:, -1] > threshold, scores[:, -1], threshold)[row]).nonzero()[:, 0]
        if len(enters):
            _merge(ids, scores, row[enters], column[enters] + start, score[enters])
        if on_progress is not None:
            on_progress(min(1.0, (start + side) / len(target)))
    return ids, scores


def _merge(ids: Tensor, scores: Tensor, rows: Tensor, new_ids: Tensor, new_scores: Tensor) -> None:
    """Let new entries (all [n], ids ascending) into the best of their rows, in place."""
    top = ids.shape[1]
    touched = torch.unique(rows)
    all_rows = torch.cat([touched.repeat_interleave(top), rows])
    all_ids = torch.cat([ids.index_select(0, touched).flatten(), new_ids])
    all_scores = torch.cat([scores.index_select(0, touched).flatten(), new_scores])
    # Two stable sorts: by row, within a row best first, within equals as they stood, which is by id.
    order = all_scores.argsort(descending=True, stable=True)
    in_row, by_row = all_rows.index_select(0, order).sort(stable=True)
    order = order.index_select(0, by_row)
    rank = torch.arange(len(order), device=ids.device) - torch.searchsorted(in_row, in_row)
    best = (rank < top).nonzero()[:, 0]
    places = in_row.index_select(0, best) * top + rank.index_select(0, best)
    chosen = order.index_select(0, best)
    ids.view(-1).index_copy_(0, places, all_ids.index_select(0, chosen))
    scores.view(-1).index_copy_(0, places, all_scores.index_select(0, chosen))
