"""Vocabulary: the hashed words and pairs of the questions that weights were fitted on, and likeness to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.core import Floats
from fusion.learned.features import bucket, ngrams

NEAREST = 3  # a prompt is like the questions if so many resemble it: one may be its twin by chance


@dataclass(frozen=True, slots=True)
class Seen:
    """The words and pairs of a prompt that a vocabulary knows, those of one bucket together.

    Attributes:
        names: [n], the first of each bucket.
        rows: [n], their rows of the vocabulary.
        shares: [n], what each counts as a feature: 0 where only one question has it, of length 1 together.
        size: buckets of the prompt, unknown ones included.
    """

    names: list[str]
    rows: NDArray[np.int64]
    shares: Floats
    size: int


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words and pairs that the questions held, hashed.

    Attributes:
        buckets: [F] int32, ascending.
        rarity: [F] float32, the weight of a bucket among the features: the logarithm of one question in how many
            has it; 0 where only one has.
    """

    buckets: NDArray[np.int32]
    rarity: NDArray[np.float32]

    def look_up(self, found: Sequence[str]) -> Seen:
        """What it knows of a prompt's words."""
        names: dict[int, str] = {}
        counts: dict[int, int] = {}
        for ngram, times in ngrams(found).items():
            at = bucket(ngram)
            names.setdefault(at, ngram)
            counts[at] = counts.get(at, 0) + times
        buckets = np.fromiter(counts, np.int64, len(counts))
        places = np.searchsorted(self.buckets, buckets)
        known = places < len(self.buckets)
        known[known] = self.buckets[places[known]] == buckets[known]
        rows = places[known]
        often = np.fromiter(counts.values(), np.float64, len(counts))[known]
        shares: Floats = np.log1p(often) * self.rarity[rows]
        shares /= float(np.linalg.norm(shares)) or 1.0
        return Seen([names[one] for one in buckets[known].tolist()], rows, shares, len(counts))


@dataclass(frozen=True, slots=True)
class Prototypes:
    """Questions that a prompt is compared with, Q of them.

    Attributes:
        rows: [N] int32, the rows of the vocabulary that each holds, one question after the other.
        starts: [Q + 1] int64, where each question's begin, and the end.
        sizes: [Q] int64, buckets of each, those that are not in the vocabulary included.
    """

    rows: NDArray[np.int32]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, questions: Sequence[Seen]) -> Prototypes:
        """From what a vocabulary knows of each."""
        rows = np.concatenate([*(one.rows for one in questions), np.empty(0, np.int64)]).astype(np.int32)
        starts = np.cumsum([0, *(len(one.rows) for one in questions)]).astype(np.int64)
        return cls(rows, starts, np.array([one.size for one in questions], dtype=np.int64))

    def cosines(self, seen: Seen, vocabulary: int) -> Floats:
        """How much a prompt has in common with each [Q]: shared buckets over the geometric mean of both sizes."""
        own = np.zeros(vocabulary, np.int64)
        own[seen.rows] = 1
        sums = np.concatenate([[0], np.cumsum(own[self.rows])])
        shared = sums[self.starts[1:]] - sums[self.starts[:-1]]
        cosines: Floats = shared / np.sqrt(np.maximum(self.sizes * max(seen.size, 1), 1))
        return cosines


def similarity(cosines: Floats) -> float:
    """The likeness of a prompt to questions by its cosines with them: the third largest, or the least of fewer."""
    return float(np.sort(cosines)[-NEAREST:][0]) if len(cosines) else 0.0
