"""Dynamic time warping: which tokens of two tokenizations of one text belong together.

FuseLLM (arXiv 2401.10491, section 3.2) and FuseChat (arXiv 2408.07990, section 3.2) align token sequences by the
cheapest monotone path, where a pair of tokens costs the Levenshtein distance of their strings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

Distances = NDArray[np.int32]


def align_sequences(pivot: Sequence[str], source: Sequence[str]) -> list[list[int]]:
    """For each of the P pivot tokens, the ascending positions of the source tokens aligned with it.

    Args:
        pivot: P strings, each token decoded alone; compared as given, no marker is removed.
        source: S strings, likewise.

    Returns:
        P lists. Together they cover every source position, and none is empty, except that all are where S is 0.
        Where several predecessors on the way back cost the same, the diagonal is taken before the previous pivot
        token, and that before the previous source token (FuseChat's rule). Time and memory grow with P * S.
    """
    path: list[list[int]] = [[] for _ in pivot]
    if not pivot or not source:
        return path
    total = accumulated_cost(pivot, source).data  # a memoryview reads single cells faster than the array does
    i, j = len(pivot) - 1, len(source) - 1
    path[i].append(j)
    while i and j:
        both, up, left = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
        if both <= up and both <= left:
            i, j = i - 1, j - 1
        elif up <= left:
            i -= 1
        else:
            j -= 1
        path[i].append(j)
    path[0].extend(range(j - 1, -1, -1))
    for positions in path[:i]:
        positions.append(0)
    for positions in path:
        positions.reverse()
    return path


def accumulated_cost(pivot: Sequence[str], source: Sequence[str]) -> Distances:
    """Cost [P,S] of the cheapest path from (0, 0) to each pair, its own distance included; int32, exact.

    A row is vectorised although each cell depends on its left neighbour: the cheapest way to reach column j by
    entering the row at column e and walking right is entry[e] + distance[e..j] = (entry[e] - before[e]) +
    through[j], with prefix sums `before` and `through`. Its minimum over e <= j is a running minimum.
    """
    total = _distances(pivot, source)
    sums = np.zeros((len(pivot), len(source) + 1), dtype=np.int32)
    before, through = sums[:, :-1], sums[:, 1:]
    np.cumsum(total, axis=1, out=through)
    total[0] = through[0]
    # The loop runs over views made once: at the length of a text, slicing costs as much as computing.
    entry = np.empty(len(source), dtype=np.int32)
    beyond_first = entry[1:]
    rows = zip(total, total[:, 1:], total[:, :-1], before[1:], through[1:], total[1:], strict=False)
    for row, here, diagonal, row_before, row_through, result in rows:
        entry[0] = row[0]
        np.minimum(here, diagonal, out=beyond_first)
        np.subtract(entry, row_before, out=entry)
        np.minimum.accumulate(entry, out=entry)
        np.add(entry, row_through, out=result)
    return total


def _distances(pivot: Sequence[str], source: Sequence[str]) -> Distances:
    """Levenshtein distances [P,S]; each pair of different strings is compared once, as tokens repeat in a text."""
    rows = {token: n for n, token in enumerate(dict.fromkeys(pivot))}
    columns = {token: n for n, token in enumerate(dict.fromkeys(source))}
    unique = cdist(list(rows), list(columns), scorer=Levenshtein.distance, dtype=np.int32, workers=1)
    row_of = np.fromiter((rows[token] for token in pivot), dtype=np.intp, count=len(pivot))
    column_of = np.fromiter((columns[token] for token in source), dtype=np.intp, count=len(source))
    distances: Distances = unique.take(column_of, axis=1).take(row_of, axis=0)
    return distances
