"""The nearest target rows of every source row, corrected for hubs (CSLS), without the full matrix in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import isqrt

import torch
from torch import Tensor

from alignment.learning.looks import Square, choose, inner_products, rounding

_CELLS = 1 << 22  # similarities held at a time: 16 MiB, which stay in the cache while they are looked at
_GROUP = 32  # similarities in a row whose highest is looked at first: few groups hold any that matter


def nearest(
    source: Tensor,
    target: Tensor,
    *,
    top: int,
    threshold: float,
    uncorrected: Tensor,
    near: Tensor,
    on_progress: Callable[[float], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """The `top` best target rows of each source row among those that score at least `threshold`.

    source: [Vs, m] float32, target: [Vt, m] float32, both of unit rows. `threshold`: above 0. `uncorrected`:
    target rows without the correction. `near` [P, 2] int64: source and target rows that are likely to be each
    other's nearest, which saves time where they are. The score is 2 cos(i, j) - r(j), where r(j) is the highest
    cosine of j to any source row: CSLS with a neighbourhood of 1 and without the source-side term, as EVA's
    authors compute it.

    Returns ids [Vs, top] int64 and scores [Vs, top] float32, best first, the lower id first among equals; -1
    and -inf where fewer rows reach the threshold. `on_progress` is called with the share of the work done, 0 to 1.

    One pass over the product, in squares, of which a first look (`alignment.learning.looks`) tells how high the
    cosines can be. r(j) is known once row j has met every source row; until then the highest cosine so far bounds
    it from below, so only what can still reach `threshold` is kept of a square. When its target rows have met all,
    what can be their highest or enter a row is computed in float32: the result does not depend on the look.
    """
    side = max(1, isqrt(_CELLS) // _GROUP) * _GROUP
    look = choose(source, target, side)
    ids = source.new_full((len(source), top), -1, dtype=torch.int64)
    scores = source.new_full((len(source), top), -torch.inf)
    corrected = torch.ones(len(target), dtype=torch.bool, device=target.device)
    corrected[uncorrected] = False
    of_source, of_target = near[near[:, 1].argsort()].T.contiguous()
    reached = inner_products(source, target, of_source, of_target) - rounding(source.shape[1])
    least = source.new_full((len(target),), -torch.inf).scatter_reduce_(0, of_target, reached, "amax")
    for start in range(0, len(target), side):
        block, counts = target[start : start + side], corrected[start : start + side]
        needed = torch.where(scores[:, -1] > threshold, scores[:, -1], threshold)
        row, column = _candidates(look.squares(start), counts, least[start : start + side], threshold, needed)
        cosine = inner_products(source, block, row, column)
        highest = source.new_zeros(len(block)).scatter_reduce_(0, column, cosine, "amax", include_self=False)
        score = 2 * (cosine - (highest * counts)[column] / 2)
        enters = (score >= needed[row]).nonzero()[:, 0]
        if len(enters):
            _merge(ids, scores, row[enters], column[enters] + start, score[enters])
        if on_progress is not None:
            on_progress(min(1.0, (start + side) / len(target)))
    return ids, scores


def _candidates(
    squares: Iterable[Square], counts: Tensor, highest: Tensor, threshold: float, needed: Tensor
) -> tuple[Tensor, Tensor]:
    """The source rows and target rows, both [n], whose products matter, ordered by target row.

    They are those with which a target row may have its highest cosine, if that reaches `threshold`, and those
    whose score may be as high as `needed` [Vs].

    squares: of some target rows with all source rows. counts: [b] bool, which of these target rows are corrected.
    highest: [b] float32, what their highest cosine is known to be at least. needed: float32.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for square in squares:
        values, unit, error = square.values, square.unit, square.error
        whole = values.shape[1] // _GROUP * _GROUP
        groups = values[:, :whole].view(len(values), whole // _GROUP, _GROUP)
        rest = values[:, whole:]
        maxima = groups.amax(dim=2)
        highest = torch.maximum(highest, torch.cat([maxima, rest], dim=1).amax(dim=1) * unit - error)
        lowest = square.least((highest * counts + threshold) / 2 - error)
        # Places in flattened tensors: pairs of places take twice the time.
        hit = (maxima >= lowest[:, None]).flatten().nonzero()[:, 0]
        column = hit // max(1, maxima.shape[1])
        members = groups.flatten(0, 1).index_select(0, hit)
        place = (members >= lowest[column, None]).flatten().nonzero()[:, 0]
        which = place // _GROUP
        column, value = column[which], members.flatten()[place]
        row = hit[which] * _GROUP + place % _GROUP - column * whole
        also, place = (rest >= lowest[:, None]).nonzero(as_tuple=True)
        column, row = torch.cat([column, also]), torch.cat([row, place + whole])
        most = torch.cat([value, rest[also, place]]) * unit[column] + error[column]
        found.append((square.rows[row], column, most))
    row, column, most = (torch.cat(parts) for parts in zip(*found, strict=True))
    matter = (most >= highest[column]) | (2 * most - (highest * counts)[column] >= needed[row])
    column, order = column[matter].sort(stable=True)
    return row[matter][order], column


def _merge(ids: Tensor, scores: Tensor, rows: Tensor, new_ids: Tensor, new_scores: Tensor) -> None:
    """Let new entries into the best of their rows, in place.

    rows, new_ids: [n] int64, the ids ascending and above all that are there. new_scores: [n] float32, above 0.
    """
    top = ids.shape[1]
    counts = torch.bincount(rows, minlength=len(ids))
    touched = counts.nonzero()[:, 0]
    counts = counts[touched] + top
    all_rows = torch.cat([touched.repeat_interleave(top), rows])
    all_ids = torch.cat([ids.index_select(0, touched).flatten(), new_ids])
    all_scores = torch.cat([scores.index_select(0, touched).flatten(), new_scores])
    # By row, then best first, then as they stood, which is by id. The bits of -inf and of numbers above 0 are
    # ordered as these are, and whole numbers are sorted by their digits, in a tenth of the time of floats.
    order = ((all_rows << 32) - all_scores.view(torch.int32)).argsort(stable=True)
    rank = torch.arange(len(order), device=ids.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    chosen = order[rank < top]
    ids[touched] = all_ids[chosen].view(-1, top)
    scores[touched] = all_scores[chosen].view(-1, top)
