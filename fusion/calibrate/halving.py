"""Successive halving: all candidates answer few questions, the better half answers twice as many, and so on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

One = TypeVar("One")

FEWEST = 8  # questions of the first rung
AS_GOOD = 0.005  # of a score of 1: within this the cheaper candidate counts as the better one
AS_CHEAP = 1.05  # times the cost: answers of a few tokens more or less say nothing about the next questions


class OutOfTime(Exception):  # noqa: N818 - it ends a search, it is no failure
    """The time allowed is over; what was measured so far counts."""


@dataclass(frozen=True, slots=True)
class Standing(Generic[One]):
    """A candidate with its scores on the first questions, 0 to 1 each, and what a question costs in member passes.

    The cost is infinite where nothing was answered. `behind` is the lead of the best member in its worst task, and
    `shortfall` what of it chance does not explain, which is taken off its mean in the search (see
    `fusion.calibrate.shortfall`).
    """

    candidate: One
    scores: tuple[float, ...]
    cost: float
    behind: float = 0.0
    shortfall: float = 0.0

    @property
    def mean(self) -> float:
        """Its score, 0 to 1."""
        return float(np.mean(self.scores)) if self.scores else 0.0

    @property
    def worth(self) -> float:
        """What candidates are compared by."""
        return self.mean - self.shortfall


def rungs(candidates: int, questions: int) -> list[int]:
    """How many of the `questions` each rung asks, ascending; the last asks all of them.

    As many rungs as halvings leave one candidate, where there are enough questions for that: a rung has twice as
    many as the one before, and the first at least `FEWEST`.
    """
    sizes = [questions]
    while len(sizes) < max(1, int(np.ceil(np.log2(max(candidates, 1))))) and sizes[0] // 2 >= FEWEST:
        sizes.insert(0, sizes[0] // 2)
    return sizes


def planned(candidates: int, questions: int) -> int:
    """How many answers a whole search takes: no candidate answers a question twice."""
    total = before = 0
    for size in rungs(candidates, questions):
        total += candidates * (size - before)
        candidates, before = _half(candidates), size
    return total


def _half(candidates: int) -> int:
    """How many go on to the next rung."""
    return max(1, -(-candidates // 2))


def search(
    candidates: Sequence[One],
    questions: int,
    measure: Callable[[One, int], Standing[One]],
) -> list[Standing[One]]:
    """Find the best candidate; return the latest standing of each, best first.

    Candidates that went further stand before those that were left behind. `measure` gives a candidate's standing
    on the first n questions and may raise `OutOfTime`, which ends the search.
    """
    left = list(candidates)
    latest: dict[One, Standing[One]] = {}
    order: list[One] = []
    try:
        for size in rungs(len(left), questions):
            for candidate in left:
                latest[candidate] = measure(candidate, size)
            left = [standing.candidate for standing in ranked([latest[one] for one in left])]
            order = [*left, *(one for one in order if one not in left)]
            left = left[: _half(len(left))]
    except OutOfTime:
        pass
    # Of a rung that was not finished, only what was measured on as many questions can be compared.
    complete = [latest[one] for one in order if one in latest]
    begun = [standing for one, standing in latest.items() if one not in order]
    return [*complete, *ranked(begun)]


def ranked(standings: Sequence[Standing[One]]) -> list[Standing[One]]:
    """Best first; of those as good as the best one that is left, the cheapest first.

    Of those that cost about the same the first is that which loses least to a member in its worst task.
    """
    left, order = list(standings), []
    while left:
        best = max(standing.worth for standing in left)
        close = [standing for standing in left if standing.worth >= best - AS_GOOD]
        cheapest = min(standing.cost for standing in close)
        cheap = [standing for standing in close if standing.cost <= AS_CHEAP * cheapest]
        chosen = min(cheap, key=lambda standing: (standing.behind, -standing.worth))
        order.append(chosen)
        left.remove(chosen)
    return order
