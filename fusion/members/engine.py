"""Engine: runs one checkpoint synchronously, stepped by its host; EngineKind: an entry of the registry."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from fusion.core import Answer, Capacity, Task

DECODING_TOKENS = 16
"""Tokens up to which an extension counts as decoding and not as a prompt, on every engine."""


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
        """Queue work. An invalid or impossible task is answered with `AdvanceFailed` by the next `step`."""

    def close(self, sequences: Collection[int]) -> None:
        """Free the caches of these sequences and forget their queued work; unknown ids are ignored."""

    def has_work(self) -> bool:
        """Return whether `step` has anything to do."""

    def step(self) -> list[Answer]:
        """Run at most one forward pass and return what it finished, which may be nothing.

        An exception leaves the engine usable, but the caches of the sequences with queued work undefined:
        close them.
        """

    def shutdown(self) -> None:
        """Free weights and caches; no other call may follow."""


@dataclass(frozen=True, slots=True)
class EngineKind:
    """Description of an engine, available without importing the engine.

    Its functions are named as `module:attribute` and imported where they are used, so an engine that is not used
    need not be installed.

    Attributes:
        load: the function that returns an `Engine`, with the keyword arguments of `EngineSpec`.
        options: names of the options it takes beyond those of every engine.
        sizes_cache: keys of its `engine_args` that set the cache's size in place of `cache_tokens`.
        examine: a function of a checkpoint's configuration and source, and by name `revision`, `trust_remote_code`
            and `max_context`, that raises ConfigError for an architecture it cannot run, and returns what keeps it
            from its fastest path.
        refusals: a function of (arguments of several engines, environment) that returns for each what its options
            are refused for, or None; asked by `tutti check`.
        changes_transformers: whether importing it changes classes of transformers in its process, so that engines
            that need them unchanged load first.
    """

    load: str
    options: tuple[str, ...] = ()
    sizes_cache: frozenset[str] = frozenset()
    examine: str | None = None
    refusals: str | None = None
    changes_transformers: bool = False
