"""What runs one checkpoint: a synchronous engine, stepped by whoever hosts it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from fusion.core import Answer, Capacity, Task


class Engine(Protocol):
    """A continuous-batching engine without a thread of its own.

    Not thread-safe: one thread owns an engine and makes every call. `fusion.members.hosts.inline` is such an
    owner.

    Attributes:
        capacity: what fits, in this engine's tokens.
        vocabulary_size: width of the distributions it answers with; ids in `NextTokens` are below it.
        device: where it computes (`cpu`, `cuda:0`); engines of one device are best stepped one after another.
        broken: why it will never work again, as a part of a sentence; None while it does.
    """

    capacity: Capacity
    vocabulary_size: int
    device: str

    @property
    def broken(self) -> str | None:
        """See above."""

    def add(self, work: list[Task]) -> None:
        """Queue work. What cannot be done is answered with `AdvanceFailed` by the next `step`."""

    def close(self, sequences: Collection[int]) -> None:
        """Free the caches of these sequences and forget their queued work; unknown ids are ignored."""

    def has_work(self) -> bool:
        """Whether `step` has anything to do."""

    def step(self) -> list[Answer]:
        """Run at most one forward pass and return what it finished, which may be nothing.

        An exception leaves the engine usable, but the caches of the sequences with queued work undefined:
        close them.
        """

    def shutdown(self) -> None:
        """Free weights and caches; no other call may follow."""
