"""Forward: the interface of a way to run a model, one forward pass over parts of several sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fusion.members.transformers.lora import Adapters


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a forward pass that belongs to one sequence.

    Attributes:
        sequence: the id of that sequence.
        ids: the tokens to run, at least one.
        first: how many tokens of the sequence are cached before them.
        scored: the indices of `ids` whose logits are wanted, ascending.
        start: first position of its extent of the cache.
        size: length of that extent, in tokens.
        adapter: the adapter that it runs with, by name.
    """

    sequence: int
    ids: list[int]
    first: int
    scored: list[int]
    start: int
    size: int
    adapter: str | None = None

    @property
    def length(self) -> int:
        """Cached tokens once the part has run."""
        return self.first + len(self.ids)


class Forward(Protocol):
    """A way of running a model; the engine around it schedules, sets cache aside and answers.

    Attributes:
        path: its name in the log and in `tutti check`.
        continues: whether a pass can run many tokens after cached ones; otherwise only into an empty cache.
        in_cache: whether all that is kept of a sequence lies in the cache of keys and values.
        adapters: of the model, if it has any; to be told which of them the rows of a pass run with.
    """

    path: str
    continues: bool = True
    in_cache: bool = False
    adapters: Adapters | None = None

    def run(self, parts: list[Part]) -> tuple[list[int], Tensor | None]:
        """Run the parts, each after what is cached of its sequence.

        Returns the order in which they were laid out (indices into `parts`) and their logits [rows, V] float32:
        a row for each scored index, in that order; None where no part is scored.
        """

    def rollback(self, sequence: int, keep: int) -> None:
        """Let only the first `keep` tokens of a sequence stay: nothing to do where all lies in the cache."""
        return

    def forget(self, sequence: int) -> None:
        """Drop all state of a sequence that is kept outside the cache, if any is."""
        return
