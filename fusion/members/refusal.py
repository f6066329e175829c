"""Refusal: the reason why an engine cannot take work, whichever engine it is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from fusion.core import Advance, Capacity, Generate

NO_ROW = "There is no row to look at again."


@dataclass(frozen=True, slots=True)
class Limits:
    """What work is held against.

    Attributes:
        capacity: of the engine.
        known_ids: ids below it can be read.
        vocabulary_size: ids below it are in the engine's distributions.
        adapters: names of those that were loaded.
    """

    capacity: Capacity
    known_ids: int
    vocabulary_size: int
    adapters: Collection[str] = ()

    def refusal(self, work: Advance | Generate, *, cached: int | None, open: int) -> str | None:
        """One sentence on work that is invalid or finds no place; None where it may be queued.

        `cached` tokens of its sequence are there, None if it is not open; `open` sequences are.
        """
        ids = work.append if isinstance(work, Advance) else work.ids
        kept = work.keep if isinstance(work, Advance) else 0
        if not ids:
            return "An advance must append at least one token."
        if not 0 <= kept <= (cached or 0):
            return f"Cannot keep {kept} tokens: {cached or 0} are cached."
        if work.length > self.capacity.context:
            return f"{work.length} tokens are more than the context of {self.capacity.context}."
        if not 0 <= min(ids) <= max(ids) < self.known_ids:
            return f"Token ids must be at least 0 and below {self.known_ids}."
        if work.adapter is not None and work.adapter not in self.adapters:
            return f"There is no adapter {work.adapter}."
        if cached is None and open >= self.capacity.sequences:
            return f"All {self.capacity.sequences} places for sequences are taken."
        return self._misnamed(work) if isinstance(work, Advance) else None

    def _misnamed(self, advance: Advance) -> str | None:
        """The reason why ids cannot be named, or the answer limited, at the rows that are asked for."""
        each, scored = advance.each, len(advance.scored)
        extremes = [int(each.min()), int(each.max())] if each is not None and each.size else []
        if each is not None and (len(each) != scored or self.unknown(extremes)):
            return (
                f"Ids that are named must be at least 0 and below {self.vocabulary_size}, as many as are scored."
            )
        rows = 1 + (scored if advance.score == "all" else 0)
        if advance.allowed is not None and advance.allowed.ndim > 1 and len(advance.allowed) != rows:
            return f"The answer has {rows} rows, but {len(advance.allowed)} bitmasks limit it."
        return self.unknown(advance.also)

    def unknown(self, ids: Collection[int]) -> str | None:
        """The reason why these ids cannot be named, None where they can."""
        if ids and not 0 <= min(ids) <= max(ids) < self.vocabulary_size:
            return f"Ids that are named must be at least 0 and below {self.vocabulary_size}."
        return None
