"""Numbers: the number that a sequence has in the engine of each of its members."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

PLACE_BITS = 32
"""Bits of a number in an engine that are the sequence's own; those above are the place of a view there."""


class Numbers:
    """A sequence's number in each engine: its own, and others for further views of one model."""

    def __init__(self, number: int, engines: Mapping[str, str]) -> None:
        """`engines` are those of the members, by name."""
        places: Counter[str] = Counter()
        self._numbers: dict[str, int] = {}
        for name, engine in engines.items():
            self._numbers[name] = number + (places[engine] << PLACE_BITS)
            places[engine] += 1
        self._names = {(engines[name], own): name for name, own in self._numbers.items()}

    def of(self, name: str) -> int:
        """The number in the engine of a member."""
        return self._numbers[name]

    def name(self, engine: str, number: int) -> str | None:
        """The member that has this number in an engine; None for none."""
        return self._names.get((engine, number))


def own_number(number: int) -> int:
    """The number of the sequence that has this number in an engine."""
    return number & (1 << PLACE_BITS) - 1
