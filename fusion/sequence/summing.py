"""Summing: the candidates of a round that adds up log-probabilities, and every member's answer for exactly those.

The pivot's mask decides alone which tokens may win. The other members are asked for these tokens by name: one that
is missing from a member's best ones has no log-probability there, and any stand-in for it would be a reward where
the weight is below zero. `fusion.arithmetic.combine` is the same sum over whole rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from alignment.vocab_map import VocabMap
from fusion.core import Floats, Ids, LogProbs
from fusion.options import Mask
from fusion.step import project

Tokens = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(slots=True)
class Sum:
    """The sum of one round, over C candidates.

    Attributes:
        pivot: its name.
        tokens: [C] int64, the pivot's ids that may win, ascending.
        weights: those in force, by member.
        cut: see `fusion.reports.RoundReport`.
        logs: by member, [C] its log-probabilities, normalised; NaN where it cannot say a token, -inf where it
            excludes one.
        asked: by member, the ids that it is asked for.
        awaited: the members that have not answered yet.
    """

    pivot: str
    tokens: Tokens
    weights: dict[str, float]
    cut: float | None
    logs: dict[str, Floats] = field(default_factory=dict)
    asked: dict[str, Tokens] = field(default_factory=dict)
    awaited: set[str] = field(default_factory=set)

    def lead_alone(self) -> None:
        """Go on without the other members: one of them has left."""
        self.weights = {self.pivot: 1.0}
        self.awaited &= {self.pivot}

    def distribution(self) -> Floats:
        """softmax of the weighted sum, [C].

        A term that a member cannot say is left out for that token, and its weight is the pivot's there: with 0 in
        its place, the log-probability of what is certain, a missing word would be a prize or a fault. A token that
        nobody on the positive side can say has no probability: with nothing but penalties, or with nothing at all,
        it would be ahead of what somebody said. Where no token is left the pivot decides alone.
        """
        possible, total = self._added(self.weights)
        if not possible.any():
            possible, total = self._added({self.pivot: 1.0})
        if not possible.any():
            possible[:] = True
        total = np.where(possible, total, -np.inf)
        probabilities: Floats = np.exp(total - total.max(initial=-np.inf))
        probabilities /= probabilities.sum()
        return probabilities

    def _added(self, weights: dict[str, float]) -> tuple[Flags, Floats]:
        """The tokens [C] that are said and that nobody excludes, and the sum of their terms [C]."""
        said, excluded = np.zeros((2, len(self.tokens)), np.bool_)
        total = np.zeros(len(self.tokens))
        for name, weight in weights.items():
            logs = self.logs[name]
            excluded |= logs == -np.inf
            if weight > 0:
                said |= np.isfinite(logs)
            terms = np.where(np.isnan(logs), self.logs[self.pivot], logs)
            total += weight * np.where(np.isfinite(terms), terms, 0.0)
        return said & ~excluded, total


def named_logs(
    tokens: Tokens,
    ids: Tokens,
    logprobs: LogProbs,
    vocab_map: VocabMap | None,
    listed: tuple[Ids, LogProbs],
) -> Floats:
    """A member's log-probabilities of the pivot's `tokens` [C], from those of its own `ids` [n].

    Args:
        vocab_map: its map, None where it shares the pivot's vocabulary.
        listed: its best tokens [1, k] and their log-probabilities, from which with `ids` comes what its map
            carries of it: mapped rows are normalised, so that what a map loses is no bias where terms are left
            out.

    Returns:
        [C] float64, NaN where it has no word for a token.
    """
    logs = np.full(len(tokens), np.nan)
    if vocab_map is None:
        logs[np.searchsorted(tokens, ids)] = logprobs
        return logs
    row = project([(ids[None].astype(np.int32), logprobs[None])], [vocab_map], vocab_map.target_size)
    at = np.searchsorted(tokens, row.tokens[0])
    hit = (at < len(tokens)) & (tokens[np.minimum(at, len(tokens) - 1)] == row.tokens[0])
    with np.errstate(divide="ignore"):
        logs[at[hit]] = np.log(row.probabilities[0, 0, hit])
    known, where = np.unique(np.concatenate([ids, listed[0][0]]), return_index=True)
    given = np.exp(np.concatenate([logprobs, listed[1][0]])[where].astype(np.float64))
    mass = float((given * vocab_map.weights[known].sum(axis=1)).sum())
    return logs - np.log(mass) if mass > 0 else logs


def kept_by(mask: Mask, probabilities: Floats, allowed: Flags, *, limited: bool = False) -> Flags:
    """The tokens that a mask keeps of those that are `allowed`, by the probabilities [C] of all that are listed.

    What is not allowed is as if the member had never had it: the best token is the best of the rest. A list that
    is `limited` to what may come is taken for all of that, since the probability of the rest is not known.
    """
    own = np.where(allowed, probabilities, 0.0)
    order = np.argsort(-own, kind="stable")
    kept = np.zeros(len(own), np.bool_)
    if mask.plausibility is not None:
        kept = allowed & (own >= mask.plausibility * own.max(initial=0.0))
    elif mask.top_k is not None:
        kept[order[: mask.top_k]] = True
    elif mask.nucleus is not None and mask.nucleus < 1:
        rest = own.sum()
        if not limited:  # rounding may make the difference less than what is there
            rest = max(rest, 1 - probabilities[~allowed].sum())
        falling = own[order] / rest
        before = np.cumsum(falling) - falling
        kept[order[before <= mask.nucleus]] = True
        kept[order[:1]] = True
    else:
        kept[:] = True
    return kept & allowed


def in_pivot(
    ids: Ids, logprobs: LogProbs, vocab_map: VocabMap | None, vocabulary_size: int
) -> tuple[Tokens, Floats]:
    """A row of ids and log-probabilities [k] in the pivot's vocabulary: ids ascending, those that are possible."""
    if vocab_map is None:
        ids, logprobs = ids[logprobs > -np.inf], logprobs[logprobs > -np.inf]
        order = np.argsort(ids, kind="stable")
        return ids[order].astype(np.int64), logprobs[order].astype(np.float64)
    row = project([(ids[None], logprobs[None])], [vocab_map], vocabulary_size)
    possible = row.probabilities[0, 0] > 0
    return row.tokens[0, possible], np.log(row.probabilities[0, 0, possible])
