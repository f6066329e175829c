"""The one thing in which the ways of running a model differ: a forward pass over parts of several sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Part:
    """What one sequence adds to a forward pass.

    Attributes:
        sequence: whose it is.
        ids: the tokens to run, at least one.
        first: how many tokens of the sequence are cached before them.
        scored: the indices of `ids` whose logits are wanted, ascending.
        start: its extent of the cache begins here.
        size: and holds so many tokens.
    """

    sequence: int
    ids: list[int]
    first: int
    scored: list[int]
    start: int
    size: int

    @property
    def length(self) -> int:
        """Cached tokens once the part has run."""
        return self.first + len(self.ids)


class Forward(Protocol):
    """A way of running a model; the engine around it schedules, sets cache aside and answers.

    Attributes:
        path: how the log and `tutti check` call it.
        continues: whether a pass can run many tokens after what is cached; else only where nothing is.
    """

    path: str
    continues: bool

    def run(self, parts: list[Part]) -> tuple[list[int], Tensor | None]:
        """Run the parts, each after what is cached of its sequence.

        Returns the order in which they were laid out (indices into `parts`) and their logits [rows, V] float32:
        a row for each scored index, in that order; None where no part is scored.
        """

    def rollback(self, sequence: int, keep: int) -> None:
        """Let only the first `keep` tokens of a sequence stay."""

    def forget(self, sequence: int) -> None:
        """Drop what is kept of a sequence outside the cache."""
