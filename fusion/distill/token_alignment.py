"""Token alignment: a source model's top-k distributions, brought to the pivot's token positions and vocabulary.

FuseChat (arXiv 2408.07990, section 3.2) in two passes over the training texts. First pass: `align_sequences` on
every text, `count_alignments` over all of them, `statistical_map` from the counts. Second pass: `transfer` on
every text. P and S are the positions of pivot and source, Vp and Vs their vocabulary sizes, k the entries kept of
a distribution.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist
from scipy import sparse
from scipy.special import expit

from fusion.distill.warping import align_sequences

__all__ = [
    "align_sequences",
    "count_alignments",
    "matching_positions",
    "same_tokens",
    "statistical_map",
    "sums_of_equal",
    "transfer",
]

Ids = NDArray[np.int32]
Path = Sequence[Sequence[int]]
Rules = Literal["frequent", "fusechat"]
Mode = Literal["statistics", "statistics-nomatrix", "exact"]

CONTAINED = 0.1
"""FuseChat's discount on the distance of two tokens of which one contains the other."""


def count_alignments(
    aligned: Iterable[tuple[Sequence[int], Sequence[int], Path]], shape: tuple[int, int]
) -> sparse.csr_array:
    """Count how often each source id lies on the path of each pivot id, [Vp,Vs] int64.

    Args:
        aligned: (pivot_ids [P], source_ids [S], path) of each text, the path from `align_sequences`.
        shape: (Vp, Vs).

    A source id that is repeated within one pivot position's path counts once there.
    """
    rows: list[int] = []
    columns: list[int] = []
    for pivot_ids, source_ids, path in aligned:
        if len(path) != len(pivot_ids):
            raise ValueError(f"a path has {len(path)} entries for {len(pivot_ids)} pivot tokens")
        for pivot, positions in zip(pivot_ids, path, strict=True):
            met = {source_ids[j] for j in positions}
            rows += [pivot] * len(met)
            columns += met
    # COO sums what is listed twice, so a pair met at two positions counts twice, as it should.
    ones = np.ones(len(rows), np.int64)
    return sparse.coo_array((ones, (np.array(rows, np.int64), np.array(columns, np.int64))), shape=shape).tocsr()


def same_tokens(
    pivot_tokens: Sequence[str], source_tokens: Sequence[str], *, pivot_marker: str, source_marker: str
) -> Ids:
    """Pivot id [Vs] int32 of each source token's own string, -1 where the pivot has no such token.

    Vocabulary strings, not decoded ones; every `source_marker` in a source token (the sign that stands for a
    space) is replaced by `pivot_marker`. The lowest id where the pivot lists a string twice. An empty marker
    replaces nothing.
    """
    ids: dict[str, int] = {}
    for number, token in enumerate(pivot_tokens):
        ids.setdefault(token, number)
    spelled = (_respell(token, source_marker, pivot_marker) for token in source_tokens)
    return np.fromiter((ids.get(token, -1) for token in spelled), dtype=np.int32, count=len(source_tokens))


def statistical_map(
    counts: sparse.sparray | sparse.spmatrix,
    pivot_tokens: Sequence[str],
    source_tokens: Sequence[str],
    *,
    pivot_marker: str,
    source_marker: str,
    unknown: int,
    special: Mapping[int, int] | None = None,
    rules: Rules = "frequent",
) -> Ids:
    """Pivot id [Vs] int32 of each source id, from how often they were aligned.

    Distances are Levenshtein distances of the vocabulary strings without their markers, or with them (the source's
    replaced by the pivot's) where a string would become empty, times 0.1 where one string contains the other.

    Args:
        counts: [Vp,Vs], from `count_alignments`.
        pivot_tokens: Vp vocabulary strings.
        source_tokens: Vs vocabulary strings.
        pivot_marker: what stands for a space in them.
        source_marker: likewise.
        unknown: the pivot's unknown token; only "fusechat" uses it.
        special: source id to pivot id, set last.
        rules: "frequent" (the default) takes the largest count / (1 + distance), so evidence grows with frequency,
            and maps what was never counted to -1, which `transfer` drops. "fusechat" is the published rule, the
            least distance * sigmoid(count): since the sigmoid grows, frequent pairs are punished there, and
            everything that was never counted gathers on `unknown`. The lowest pivot id among equals, in both.
    """
    if rules not in get_args(Rules):
        raise ValueError(f"rules must be one of {', '.join(get_args(Rules))}, not {rules!r}")
    table = sparse.csc_array(counts)
    table.sum_duplicates()
    table.eliminate_zeros()
    if table.shape != (len(pivot_tokens), len(source_tokens)):
        raise ValueError(
            f"counts are {table.shape[0]} x {table.shape[1]}, but there are {len(pivot_tokens)} pivot tokens "
            f"and {len(source_tokens)} source tokens"
        )
    mapped = np.full(len(source_tokens), unknown if rules == "fusechat" else -1, dtype=np.int32)
    pivots = table.indices
    sources = np.repeat(np.arange(len(source_tokens)), np.diff(table.indptr))
    if len(pivots):
        distance = _marker_free_distances(
            [pivot_tokens[p] for p in pivots.tolist()],
            [source_tokens[s] for s in sources.tolist()],
            pivot_marker,
            source_marker,
        )
        count = table.data.astype(np.float64)
        score = distance * expit(count) if rules == "fusechat" else -count / (1 + distance)
        order = np.lexsort((pivots, score, sources))
        first = np.ones(len(order), dtype=bool)
        first[1:] = sources[order][1:] != sources[order][:-1]
        mapped[sources[order][first]] = pivots[order][first]
    for source_id, pivot_id in (special or {}).items():
        mapped[source_id] = pivot_id
    return mapped


def matching_positions(
    path: Path, pivot_strings: Sequence[str], source_strings: Sequence[str], *, mode: Mode
) -> NDArray[np.intp]:
    """The source position [P] whose distribution each pivot position takes over, -1 where there is none.

    "statistics": the first on the path whose string ends the pivot's or is ended by it. "statistics-nomatrix": the
    same where the path has one position. "exact": one position and equal strings.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, not {mode!r}")
    if len(path) != len(pivot_strings):
        raise ValueError(f"the path has {len(path)} entries for {len(pivot_strings)} pivot strings")
    found = np.full(len(path), -1, dtype=np.intp)
    for i, (positions, own) in enumerate(zip(path, pivot_strings, strict=True)):
        if mode != "statistics" and len(positions) != 1:
            continue
        for j in positions:
            other = source_strings[j]
            if own == other if mode == "exact" else own.endswith(other) or other.endswith(own):
                found[i] = j
                break
    return found


def transfer(
    path: Path,
    pivot_ids: Sequence[int],
    pivot_strings: Sequence[str],
    source_strings: Sequence[str],
    source_logits: ArrayLike,
    source_indices: ArrayLike,
    *,
    mode: Mode,
    same: ArrayLike,
    statistics: ArrayLike | None = None,
    add_up: bool = False,
) -> tuple[NDArray[np.float32], Ids]:
    """The source's top-k rows at the pivot's positions, in the pivot's vocabulary.

    Args:
        path: from `align_sequences`, P lists.
        pivot_ids: P ids.
        pivot_strings: P strings, each id decoded alone.
        source_strings: S strings, likewise.
        source_logits: [S,k] float.
        source_indices: [S,k] int, padded with -1.
        mode: which positions take a row over, see `matching_positions`.
        same: [Vs] from `same_tokens`.
        statistics: [Vs] from `statistical_map`; "exact" does without.
        add_up: the mass of an entry that is dropped because its id is already there goes to that one, the logits
            being log-probabilities; where it is published as dropped, normalising hides it.

    Returns:
        logits [P,k] float32 and ids [P,k] int32, padded at the end with -inf and -1. A row that is taken over
        keeps its order; each entry goes to `same`, else to `statistics`, and is dropped where that is negative or
        already there. The row may be empty. A position that takes none over gets the next pivot token alone with
        logit 1.0, the last position its own.
    """
    found = matching_positions(path, pivot_strings, source_strings, mode=mode)
    logits = np.asarray(source_logits, dtype=np.float32)
    indices = np.asarray(source_indices)
    if logits.shape != indices.shape or logits.ndim != 2 or not logits.shape[1]:
        raise ValueError(
            f"source logits {logits.shape} and indices {indices.shape} must both be [S,k] with k >= 1"
        )
    if len(logits) != len(source_strings) or len(pivot_ids) != len(pivot_strings):
        raise ValueError("there must be a string for every pivot id and for every row of the source's logits")
    lookup = np.asarray(same, dtype=np.int32)
    if mode != "exact":
        if statistics is None:
            raise ValueError(f"mode {mode!r} needs statistics, the map from statistical_map")
        lookup = np.where(lookup >= 0, lookup, np.asarray(statistics, dtype=np.int32))
    if indices.size and indices.max() >= len(lookup):
        raise ValueError(f"source id {indices.max()} is outside the source vocabulary of {len(lookup)} tokens")

    taken = found >= 0
    rows = indices[found[taken]]
    targets = np.where(rows >= 0, lookup[rows], -1)
    new_logits = np.full((len(path), logits.shape[1]), -np.inf, dtype=np.float32)
    new_ids = np.full(new_logits.shape, -1, dtype=np.int32)
    values = logits[found[taken]]
    if add_up:
        values = _added_up(values, targets)
    new_logits[taken], new_ids[taken] = _compact(values, targets, _first_of_each(targets))
    following = np.asarray([*pivot_ids[1:], *pivot_ids[-1:]], dtype=np.int32)
    new_ids[~taken, 0] = following[~taken]
    new_logits[~taken, 0] = 1.0
    return new_logits, new_ids


def sums_of_equal(
    ids: NDArray[np.int32], mass: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Of rows [N,k] sorted by id, which entries are the first of their id, and at each the mass of all of them."""
    first = np.ones(ids.shape, dtype=bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    group = np.cumsum(first.ravel()) - 1
    return first, np.bincount(group, weights=mass.ravel())[group].reshape(ids.shape)


def _respell(token: str, marker: str, other: str) -> str:
    return token.replace(marker, other) if marker else token


def _marker_free_distances(
    pivot: Sequence[str], source: Sequence[str], pivot_marker: str, source_marker: str
) -> NDArray[np.float64]:
    """Weighted Levenshtein distances of pairs of vocabulary strings, see `statistical_map`."""
    left, right = [], []
    for own, other in zip(pivot, source, strict=True):
        bare, other_bare = _respell(own, pivot_marker, ""), _respell(other, source_marker, "")
        if not bare or not other_bare:
            bare, other_bare = own, _respell(other, source_marker, pivot_marker)
        left.append(bare)
        right.append(other_bare)
    contained = np.fromiter(
        (a in b or b in a for a, b in zip(left, right, strict=True)), dtype=bool, count=len(left)
    )
    distance = cpdist(left, right, scorer=Levenshtein.distance, dtype=np.int32, workers=1).astype(np.float64)
    weighted: NDArray[np.float64] = np.where(contained, CONTAINED, 1.0) * distance
    return weighted


def _first_of_each(ids: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Mark [N,k] the first occurrence of each id >= 0 in its row."""
    order = np.argsort(ids, axis=1, kind="stable")
    ranked = np.take_along_axis(ids, order, axis=1)
    first = ranked >= 0
    first[:, 1:] &= ranked[:, 1:] != ranked[:, :-1]
    mask = np.empty_like(first)
    np.put_along_axis(mask, order, first, axis=1)
    return mask


def _added_up(logprobs: NDArray[np.float32], ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """Log-probabilities [N,k], each that of all entries of its row with the same id."""
    order = np.argsort(ids, axis=1, kind="stable")
    mass = np.exp(np.take_along_axis(logprobs, order, axis=1).astype(np.float64))
    _, sums = sums_of_equal(np.take_along_axis(ids, order, axis=1), mass)
    summed = np.empty(ids.shape, np.float32)
    with np.errstate(divide="ignore"):
        np.put_along_axis(summed, order, np.log(sums).astype(np.float32), axis=1)
    return summed


def _compact(
    logits: NDArray[np.float32], ids: NDArray[np.int32], keep: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The kept entries of each row, moved to its front in order; padding behind."""
    order = np.argsort(~keep, axis=1, kind="stable")
    kept = np.take_along_axis(keep, order, axis=1)
    return (
        np.where(kept, np.take_along_axis(logits, order, axis=1), np.float32(-np.inf)),
        np.where(kept, np.take_along_axis(ids, order, axis=1), np.int32(-1)),
    )
