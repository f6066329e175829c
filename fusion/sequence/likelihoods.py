"""Likelihoods: what members gave to the beginning of an unfinished character, and what they weigh by it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fusion.inside import Begun, Level, first_likelihood, likelihood, weights_inside
from fusion.sequence.steps import spells

if TYPE_CHECKING:
    from fusion.sequence.sequence import Sequence


def note_likelihoods(sequence: Sequence, token: int) -> None:
    """Note what voters that are given the pivot's ids gave to a chosen token that ends inside a character."""
    surface = sequence.view.surface
    if surface(token)[-1:] < b"\x80" or sequence.fusion.combine != "mixture" or not spells(sequence):
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
                sequence.likelihoods[name] = first_likelihood(level, begun, surface)
            elif name in sequence.likelihoods:
                sequence.likelihoods[name] += likelihood(level, token)


def weights_now(sequence: Sequence, voters: Iterable[str]) -> list[float]:
    """The voters' weights in the round to come."""
    weights = sequence.weights
    if sequence.likelihoods and sequence.fusion.combine == "mixture":
        weights = weights_inside({name: weights[name] for name in voters}, sequence.likelihoods)
    return [weights[name] for name in voters]
