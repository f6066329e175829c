"""Step: project, filter and combine the members' distributions of a round. Pure functions on arrays.

Shapes: S sequences, M members, k best tokens per member, R entries per row of a vocabulary map, C candidates
(the pivot tokens that any member gives probability to), V the pivot's vocabulary. Probabilities are float64,
because they are sums of many small terms; the members' log-probabilities arrive as float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alignment.vocab_map import VocabMap
from fusion.core import Floats, Ids, LogProbs
from fusion.options import Combine, FusionParams

Bools = NDArray[np.bool_]
LEAST_LOST = 1e-4


@dataclass(frozen=True, slots=True)
class Candidates:
    """The members' distributions side by side in the pivot's vocabulary.

    Attributes:
        tokens: [S, C] int64, pivot ids in ascending order, -1 where a row is shorter than C.
        probabilities: [S, M, C], what each member gives to each candidate; 0 at the padding.
    """

    tokens: NDArray[np.int64]
    probabilities: Floats


def of_one_width(rows: list[tuple[Ids, LogProbs]]) -> list[tuple[Ids, LogProbs]]:
    """Rows of ids and log-probabilities, [1, n] each, in one length: shorter ones get their first id at none."""
    width = max(ids.shape[1] for ids, _ in rows)
    if all(ids.shape[1] == width for ids, _ in rows):
        return rows
    return [
        (
            np.pad(ids, ((0, 0), (0, width - ids.shape[1])), constant_values=ids[0, 0]),
            np.pad(logprobs, ((0, 0), (0, width - ids.shape[1])), constant_values=-np.inf),
        )
        for ids, logprobs in rows
    ]


def project(
    answers: Sequence[tuple[Ids, LogProbs]], maps: Sequence[VocabMap | None], vocabulary_size: int
) -> Candidates:
    """Bring the k best tokens of every member into the pivot's vocabulary.

    Args:
        answers: for each member the ids [S, k] and natural log-probabilities [S, k]; k may differ.
        maps: for each member its vocabulary map, None where it shares the pivot's vocabulary.
        vocabulary_size: V.

    Mass that a map does not carry is lost, as in the authors' code; nothing is renormalised here.
    """
    rows = answers[0][0].shape[0]
    starts = np.arange(rows)[:, None] * vocabulary_size
    keys: list[NDArray[np.int64]] = []  # row * V + pivot id
    masses: list[Floats] = []
    for (ids, logprobs), vocab_map in zip(answers, maps, strict=True):
        targets, mass = ids, np.exp(logprobs.astype(np.float64))
        if vocab_map is not None:
            targets = vocab_map.target_ids.take(ids, axis=0).reshape(rows, -1)
            mass = (mass[:, :, None] * vocab_map.weights.take(ids, axis=0)).reshape(rows, -1)
        mapped = targets >= 0
        keys.append((starts + targets)[mapped])
        masses.append(mass[mapped])
    unique, inverse = unique_keys(np.concatenate(keys))
    widths = np.diff(np.searchsorted(unique, np.arange(rows + 1) * vocabulary_size))
    width = max(int(widths.max()), 1)
    places = np.flatnonzero(np.arange(width) < widths[:, None])  # row * C + column of each
    tokens = np.full((rows, width), -1, dtype=np.int64)
    tokens.reshape(-1)[places] = unique - np.repeat(starts, widths)
    flat = places[inverse]
    probabilities = np.empty((len(masses), rows * width))
    ends = np.cumsum([len(mass) for mass in masses]).tolist()
    for member, (end, mass) in enumerate(zip(ends, masses, strict=True)):
        probabilities[member] = np.bincount(flat[end - len(mass) : end], mass, minlength=rows * width)
    return Candidates(tokens, probabilities.reshape(len(masses), rows, width).transpose(1, 0, 2))


def unique_keys(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`np.unique(keys, return_inverse=True)` for non-negative keys, in a third of the time.

    Sorting numbers is several times faster than sorting positions by them, so each key carries its position
    in its low bits.
    """
    bits = len(keys).bit_length()
    packed = np.sort(keys << bits | np.arange(len(keys)))
    ordered, position = packed >> bits, packed & ((1 << bits) - 1)
    first = np.ones(len(keys), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    inverse = np.empty(len(keys), dtype=np.int64)
    inverse[position] = np.cumsum(first) - 1
    return ordered[first], inverse


def renormalize(probabilities: Floats) -> Floats:
    """The members' projected rows [S, M, C] scaled to sum to 1, so that no map is a weight by accident.

    The authors' code does not do this; a member that maps nothing at all stays at 0.
    """
    mass = probabilities.sum(axis=2, keepdims=True)
    scaled: Floats = probabilities / np.where(mass > 0, mass, 1.0)
    return scaled


def complete(probabilities: Floats, pivot: int, mapped: Bools) -> Floats:
    """The members' projected rows [S, M, C], and for `mapped` members [M] what they lost.

    It is lost to tokens without a row in the map and to those beyond the k best. What is lost says nothing about
    the pivot's tokens, so it is distributed as the pivot, member `pivot` of the M, distributes its own. At least
    `LEAST_LOST` is, also of rows that a map makes too large (EVA's scores): no token that the pivot lists is
    impossible then, even where the pivot itself weighs nothing.
    """
    lost = np.maximum(1.0 - probabilities.sum(axis=2), LEAST_LOST) * mapped
    completed: Floats = lost[:, :, None] * probabilities[:, pivot, None]
    completed += probabilities
    return completed


def keep_the_pivots_cut(fused: Floats, pivot: Floats, surfaces: Callable[[int, int], bytes]) -> Floats:
    """The guard for the same text cut differently (CoRE): fused [S, C], its winner changed for the pivot's.

    Where the best fused candidate is a prefix of the pivot's own best, or contains it, the members agree on the
    text, and taking the pivot's token avoids a cut that its model would not have made. The two candidates change
    places, so that sampling follows as well.

    Args:
        pivot: [S, C], the pivot's own probabilities.
        surfaces: the text that candidate `column` of row `row` stands for.
    """
    guarded = fused.copy()
    for row, (winner, own) in enumerate(zip(fused.argmax(axis=1), pivot.argmax(axis=1), strict=True)):
        if winner == own or pivot[row, own] == 0:
            continue
        text, other = surfaces(row, int(winner)), surfaces(row, int(own))
        if text and other and (other.startswith(text) or other in text):
            guarded[row, [winner, own]] = fused[row, [own, winner]]
    return guarded


def faithful(probabilities: Floats, top: int) -> Bools:
    """EVA's filter of unfaithful tokens: which members to keep, [S, M].

    A member is kept when its best token is among the `top` best of at least one other member (all others
    count, those that are dropped too). Where that would drop every member, all stay.

    Args:
        probabilities: [S, M, C].
        top: how many of the others' best tokens count (the authors' README uses 3).
    """
    _, members, width = probabilities.shape
    best = probabilities.argmax(axis=2)  # [S, M]
    top = min(top, width)
    others = np.argpartition(-probabilities, top - 1, axis=2)[:, :, :top]  # [S, M, top]
    possible = np.take_along_axis(probabilities, others, axis=2) > 0
    # agrees[s, m, j]: the best token of m is among the best of j
    agrees = ((others[:, None] == best[:, :, None, None]) & possible[:, None]).any(axis=3)
    agrees[:, range(members), range(members)] = False
    kept: Bools = agrees.any(axis=2)
    kept[~kept.any(axis=1)] = True
    return kept


def effective_weights(weights: Floats, kept: Bools) -> Floats:
    """The weights [S, M] of the members kept, with the sum they had with all members.

    Where all members that are kept weigh nothing, they share that sum equally.
    """
    if kept.all():
        return weights
    total = weights.sum(axis=1, keepdims=True)
    left = np.where(kept, weights, 0.0)
    remaining = left.sum(axis=1, keepdims=True)
    shared = np.where(
        remaining > 0, left / np.where(remaining > 0, remaining, 1.0), kept / kept.sum(axis=1)[:, None]
    )
    scaled: Floats = shared * total
    return scaled


def mixture(probabilities: Floats, weights: Floats, named: Bools | None = None) -> Floats:
    """Weighted mean of the members' probabilities, [S, C], as EVA averages them. Not renormalised."""
    fused: Floats = np.einsum("smc,sm->sc", probabilities, weights)
    return fused


def product(probabilities: Floats, weights: Floats, named: Bools | None = None) -> Floats:
    """Weighted mean of the members' log-probabilities, normalised, [S, C] (PackLLM's mean of logits).

    A candidate that a member did not list counts there as its least probable listed one: it is at most that
    probable, and a hard zero would let the truncation to k tokens veto what every other member wants. Candidates
    that members were asked about by name, `named` [S, C], may be less probable than that, and set no floor.
    """
    fused: Floats = np.einsum("smc,sm->sc", floored_logs(probabilities, named), weights)
    fused = np.where((probabilities > 0).any(axis=1), fused, -np.inf)
    best = fused.max(axis=1, keepdims=True)
    fused = np.exp(fused - np.where(np.isfinite(best), best, 0.0))
    total = fused.sum(axis=1, keepdims=True)
    return fused / np.where(total > 0, total, 1.0)


def floored_logs(probabilities: Floats, named: Bools | None = None) -> Floats:
    """Logarithms of the members' probabilities [S, M, C], those not listed as `product` counts them."""
    listed = probabilities > 0
    floor = np.where(listed, probabilities, np.inf).min(axis=2, keepdims=True)
    if named is not None:
        best = np.where(listed & ~named[:, None], probabilities, np.inf).min(axis=2, keepdims=True)
        floor = np.where(np.isfinite(best), best, floor)
    logs: Floats = np.log(np.where(listed, probabilities, np.where(np.isfinite(floor), floor, 1.0)))
    return logs


COMBINATIONS: dict[Combine, Callable[[Floats, Floats, Bools | None], Floats]] = {
    "mixture": mixture,
    "product": product,
}


@dataclass(frozen=True, slots=True)
class Shares:
    """The members' distributions as they are combined.

    Attributes:
        probabilities: [S, M, C].
        kept: [S, M], who passed the filter.
    """

    probabilities: Floats
    kept: Bools

    def combined(self, given: Floats, combine: Combine, named: Bools | None = None) -> tuple[Floats, Floats]:
        """The weights in force [S, M] where members weigh `given` [S, M], and what they come to, [S, C]."""
        weights = effective_weights(given, self.kept)
        return weights, COMBINATIONS[combine](self.probabilities, weights, named)


def shares_of(
    probabilities: Floats, pivot: int, mapped: Bools, fusion: FusionParams, admitted: Bools | None = None
) -> Shares:
    """Filter projected distributions [S, M, C], and make up for what the maps lost as `fusion` says.

    `pivot`, `mapped` and `admitted` as for `fuse`. What is not admitted is not lost: it was said, and comes to
    nothing.
    """
    seen = _seen(probabilities, admitted)
    kept = _kept(seen, fusion.filter_top)
    if fusion.renormalize:
        return Shares(renormalize(seen), kept)
    if fusion.unmapped == "pivot" and mapped.any():
        return Shares(complete(probabilities, pivot, mapped), kept)
    return Shares(probabilities, kept)


def _seen(probabilities: Floats, admitted: Bools | None) -> Floats:
    """The part of distributions [S, M, C] that is admitted [S, C]; None admits all."""
    return probabilities if admitted is None else probabilities * admitted[:, None]


def _kept(probabilities: Floats, filter_top: int | None) -> Bools:
    members = probabilities.shape[1]
    if filter_top is None or members < 2:
        return np.ones((len(probabilities), members), dtype=np.bool_)
    return faithful(probabilities, filter_top)


@dataclass(frozen=True, slots=True)
class Fused:
    """A fused distribution [S, C] with the `shares` [S, M, C], `weights` [S, M] and `kept` [S, M] it came from."""

    shares: Floats
    weights: Floats
    kept: Bools
    distribution: Floats


def fuse(
    probabilities: Floats,
    given: Floats,
    pivot: int,
    mapped: Bools,
    fusion: FusionParams,
    named: Bools | None = None,
    admitted: Bools | None = None,
) -> Fused:
    """Filter and combine projected distributions [S, M, C] of members that weigh `given` [S, M].

    `pivot` is its index among the members, and `mapped` [M] says whose vocabulary is another than the pivot's.
    `named` are the candidates [S, C] that members were asked about (see `product`), and `admitted` those that may
    come, all with None: the rest is 0. Where nothing of what the weighty members want reaches the pivot's
    vocabulary, the pivot decides.
    """
    seen = _seen(probabilities, admitted)
    shares = shares_of(probabilities, pivot, mapped, fusion, admitted)
    given = among_voters(given)
    if fusion.confidence:
        given = confident(given, _seen(shares.probabilities, admitted), fusion.confidence)
    weights, fused = shares.combined(given, fusion.combine, named)
    if admitted is not None:
        fused = fused * admitted
    silent = np.einsum("smc,sm->s", seen, weights) == 0
    fused = np.where(silent[:, None], seen[:, pivot], fused)
    return Fused(shares.probabilities, weights, shares.kept, fused)


def among_voters(given: Floats) -> Floats:
    """Weights [S, M] scaled to sum to 1: members that are absent or have left leave theirs to the voters.

    Voters that all weigh nothing count equally.
    """
    total = given.sum(axis=1, keepdims=True)
    scaled: Floats = np.where(total > 0, given / np.where(total > 0, total, 1.0), 1 / given.shape[1])
    return scaled


def confident(given: Floats, probabilities: Floats, confidence: float) -> Floats:
    """Weights [S, M] times exp(-confidence * entropy), with the sum they had.

    The entropy is that of a member's row of `probabilities` [S, M, C] scaled to sum to 1, in nats. A row that is
    empty says nothing and counts as the least sure.
    """
    rows = renormalize(probabilities)
    entropy = -np.einsum("smc,smc->sm", rows, np.log(np.where(rows > 0, rows, 1.0)))
    entropy[~(rows > 0).any(axis=2)] = np.log(max(rows.shape[2], 2))
    relative = entropy - np.where(given > 0, entropy, np.inf).min(axis=1, keepdims=True)  # of the surest: 0
    scaled: Floats = given * np.exp(-confidence * np.maximum(relative, 0.0))
    scaled *= given.sum(axis=1, keepdims=True) / scaled.sum(axis=1, keepdims=True)
    return scaled


def fuse_logits(
    logits: Sequence[ArrayLike],
    maps: Sequence[VocabMap | None],
    *,
    weights: ArrayLike | None = None,
    filter_top: int | None = None,
    top_k: int = 320,
    combine: Combine = "mixture",
) -> tuple[NDArray[np.float32], list[bool]]:
    """One decoding step by the authors' rules (EVA's released code), for a single position.

    Each member keeps its `top_k` largest logits (ties at the limit all survive), softmax over those, product
    with its map; rows are not renormalised, so a member's mapped mass acts as an implicit weight. Then the
    filter (none with `filter_top=None`) and the combination, with equal weights where none are given. When the
    filter would keep no member, all take part, and `kept` says so.

    Args:
        logits: for each member a vector [V_i] of raw logits.
        maps: for each member its map into the pivot's vocabulary, None for "already there".
        weights: [M], non-negative.

    Returns:
        probabilities [V_pivot] float32, which need not sum to 1 in a mixture; kept, one flag per member.
    """
    if len(logits) != len(maps) or not logits:
        raise ValueError(f"{len(logits)} logit vectors and {len(maps)} maps; give one map (or None) per member")
    sizes = {m.target_size if m is not None else np.size(x) for x, m in zip(logits, maps, strict=True)}
    if len(sizes) != 1:
        raise ValueError(f"the members do not meet in one vocabulary: sizes {sorted(sizes)}")
    size = sizes.pop()
    answers = []
    for vector in logits:
        x = np.asarray(vector, dtype=np.float32).reshape(-1)
        limit = np.partition(x, max(len(x) - top_k, 0))[max(len(x) - top_k, 0)]
        ids = np.flatnonzero(x >= limit).astype(np.int32)
        best = x[ids]
        logprobs = best - best.max() - np.log(np.exp(best - best.max()).sum())
        answers.append((ids[None], logprobs[None].astype(np.float32)))
    candidates = project(answers, maps, size)
    shares = Shares(candidates.probabilities, _kept(candidates.probabilities, filter_top))
    given = np.full(len(answers), 1 / len(answers)) if weights is None else np.asarray(weights, dtype=np.float64)
    _, fused = shares.combined(given[None], combine)
    dense = np.zeros(size, dtype=np.float32)
    used = candidates.tokens[0] >= 0
    dense[candidates.tokens[0, used]] = fused[0, used]
    return dense, [bool(flag) for flag in shares.kept[0]]
