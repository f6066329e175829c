"""Numbers: the number that a sequence has in the engine of each of its members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

PLACE_BITS = 32
"""Bits of a number in an engine that are the sequence's own; those above are the place of a view there."""


class Numbers:
    """A sequence's number in each engine: its own, and others for further views of one model."""

    def __init__(self, number: int, engines: Mapping[str, str]) -> None:
        """`engines` are those of the members, by name."""
        self._numbers: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}
        for name, engine in engines.items():
            names = self._names.setdefault(engine, [])
            self._numbers[name] = number + (len(names) << PLACE_BITS)
            names.append(name)

    def of(self, name: str) -> int:
        """The number in the engine of a member."""
        return self._numbers[name]

    def names(self, engine: str) -> Sequence[str]:
        """The members that one engine runs."""
        return self._names.get(engine, ())
