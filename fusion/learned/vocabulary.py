"""Vocabulary: the hashed words and pairs of the questions that weights were fitted on, and likeness to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.core import Floats
from fusion.learned.features import bucket, ngrams

# Texts one after the other: rows of the vocabulary, shares, and where each text begins, with the end of the last.
Prototypes = tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words and pairs that the questions held, hashed.

    Attributes:
        buckets: [F] int32, ascending.
        rarity: [F] float32, the weight of a bucket in a prompt: the logarithm of one question in how many has it.
        frequent: [F], whether more than one has it; only those are features.
        unseen: the rarity of what no question had.
    """

    buckets: NDArray[np.int32]
    rarity: NDArray[np.float32]
    frequent: NDArray[np.bool_]
    unseen: float

    def shares(self, found: Sequence[str]) -> Shares:
        """The shares of a prompt's words and pairs, unseen ones included, in a vector of length 1.

        Those of one bucket count together, under the name of the first.
        """
        names: dict[int, str] = {}
        counts: Counter[int] = Counter()
        for ngram, times in ngrams(found).items():
            at = bucket(ngram)
            names.setdefault(at, ngram)
            counts[at] += times
        buckets = np.fromiter(counts, np.int64, len(counts))
        known = np.isin(buckets, self.buckets)
        rows = np.searchsorted(self.buckets, buckets[known])
        rarity = np.full(len(buckets), self.unseen)
        rarity[known] = self.rarity[rows]
        shares = np.log1p(np.fromiter(counts.values(), np.float64, len(counts))) * rarity
        shares /= float(np.linalg.norm(shares)) or 1.0
        return Shares([names[one] for one in buckets[known].tolist()], rows, shares[known])


@dataclass(frozen=True, slots=True)
class Shares:
    """The part of a prompt that a vocabulary knows: names, rows of it [n], and shares [n] of length 1 at most."""

    names: list[str]
    rows: NDArray[np.int64]
    shares: Floats

    def features(self, vocabulary: Vocabulary) -> Shares:
        """What of it counts as features, scaled to length 1."""
        kept = vocabulary.frequent[self.rows]
        left = self.shares[kept]
        names = [name for name, one in zip(self.names, kept, strict=True) if one]
        return Shares(names, self.rows[kept], left / (float(np.linalg.norm(left)) or 1.0))


def similarities(seen: Shares, prototypes: Prototypes, size: int) -> Floats:
    """The cosines [Q] of a prompt with each question, over a vocabulary of `size`."""
    rows, shares, starts = prototypes
    own = np.zeros(size)
    own[seen.rows] = seen.shares
    sums = np.concatenate([[0.0], np.cumsum(own[rows] * shares)])
    cosines: Floats = sums[starts[1:]] - sums[starts[:-1]]
    return cosines
