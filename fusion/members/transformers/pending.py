"""Work: advances in progress."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fusion.core import Advance, Ids, LogProbs, NextTokens, Score


@dataclass(slots=True)
class Work:
    """An advance in progress: `done` of its tokens are cached; the rows of its answer are collected here.

    `scored` are the indices of `append` after which `score` asks for something, without the final one.
    """

    append: list[int]
    score: Score
    scored: Sequence[int]
    also: Sequence[int] = ()
    allowed: NDArray[np.uint8] | None = None
    done: int = 0
    ids: list[Ids] = field(default_factory=list)
    logprobs: list[LogProbs] = field(default_factory=list)
    appended: list[LogProbs] = field(default_factory=list)
    named: LogProbs | None = None

    @classmethod
    def of(cls, advance: Advance) -> Work:
        """All of an advance."""
        return cls(list(advance.append), advance.score, advance.scored, advance.also, advance.allowed)

    @property
    def remaining(self) -> int:
        """Tokens that are not cached yet."""
        return len(self.append) - self.done

    def next(self, count: int) -> tuple[list[int], list[int]]:
        """The next `count` tokens, and which of them (by index) need logits."""
        end = self.done + count
        some = self.scored[bisect_left(self.scored, self.done) : bisect_left(self.scored, end)]
        scored = [index - self.done for index in some] + [count - 1] * (count == self.remaining)
        return self.append[self.done : end], scored

    def answer(self, sequence: int) -> NextTokens:
        """Return the collected answer, once no tokens remain."""
        appended = None
        if self.score != "last":
            appended = np.concatenate([*self.appended, np.empty(0, np.float32)])
        return NextTokens(sequence, np.concatenate(self.ids), np.concatenate(self.logprobs), appended, self.named)
