"""Likelihoods: what members gave to the beginning of an unfinished character, and what they weigh by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from alignment.text.characters import beginning_at_the_end
from fusion.inside import Begun, Level, first_likelihood, likelihood, shifted, weights_inside
from fusion.sequence.steps import spells

if TYPE_CHECKING:
    from fusion.sequence.sequence import Sequence


def mixes(sequence: Sequence) -> bool:
    """Return whether its rounds are means of probabilities, in which likelihoods weigh."""
    return sequence.terms is None and sequence.fusion.combine == "mixture"


def note_trust(sequence: Sequence, token: int, given: Mapping[str, float]) -> None:
    """Note what the voters gave to a token that may end a character."""
    likelihoods = sequence.likelihoods
    if not likelihoods or not mixes(sequence):
        return
    if not beginning_at_the_end(bytes(sequence.written[-3:]) + sequence.view.surface(token)):
        weights = {name: sequence.weights[name] for name in given}
        sequence.trust = shifted(sequence.trust, weights, likelihoods, given)


def note_likelihoods(sequence: Sequence, token: int) -> None:
    """Note what voters that are given the pivot's ids gave to a chosen token that ends inside a character."""
    surface = sequence.view.surface
    if surface(token)[-1:] < b"\x80" or not mixes(sequence) or not spells(sequence):
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
    if sequence.likelihoods and mixes(sequence):
        weights = weights_inside({name: weights[name] for name in voters}, sequence.likelihoods, sequence.trust)
    return [weights[name] for name in voters]
