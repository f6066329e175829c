"""What members gave to the beginning of a character of several of the pivot's tokens: their weights inside it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fusion.inside import Begun, Level, heard_first, likelihood, weights_inside
from fusion.sequence.steps import spells

if TYPE_CHECKING:
    from fusion.sequence.sequence import Sequence


def hear(sequence: Sequence, token: int) -> None:
    """Note what voters that are given the pivot's ids gave to a chosen token that ends inside a character."""
    surface = sequence.view.surface
    if not spells(sequence) or surface(token)[-1:] < b"\x80":
        return
    begun = Begun.at_the_end([*sequence.tokens[-3:], token], surface)
    if begun is None:
        return
    for name in sequence.voters:
        seat = sequence.seats[name]
        if seat.spelling is None:
            ids, logprobs = seat.listed(sequence.cursor, sequence.bias.of(name)[0])
            level = Level(ids[0], logprobs[0], b"")
            if len(begun.tokens) == 1:
                sequence.heard[name] = heard_first(level, begun, surface)
            elif name in sequence.heard:
                sequence.heard[name] += likelihood(level, token)


def weigh(sequence: Sequence, voters: Iterable[str]) -> list[float]:
    """The voters' weights in the round to come."""
    weights = {name: sequence.weights[name] for name in voters}
    if sequence.heard and sequence.fusion.combine == "mixture":
        weights = weights_inside(weights, sequence.heard)
    return list(weights.values())
