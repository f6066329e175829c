"""Steps: the tokens of a draft that may come next in turn, with those that a constraint forces between them."""

from __future__ import annotations

from collections.abc import Iterable

from alignment.errors import InvalidRequestError
from alignment.text.characters import beginning_at_the_end
from fusion.policy.policy import Asking, Step


def may_draft(sequence: Asking) -> bool:
    """Return whether any token can be drafted now."""
    room = sequence.sampling.max_tokens - sequence.length > 1
    # Inside a character members that spell it otherwise speak from before it.
    return room and sequence.spelled and not (spells(sequence) and beginning_at_the_end(_tail(sequence)))


def draftable(sequence: Asking, tokens: Iterable[int], after: tuple[Step, ...] = ()) -> tuple[Step, ...]:
    """Lengthen a draft by as many of `tokens`, which are the pivot's, as can be drafted.

    It ends before a token that the constraint does not admit or that ends the sequence, and where no whole text
    would stand. What the constraint forces comes whether it is among `tokens` or not.
    """
    if not may_draft(sequence):
        return ()
    steps, coming = list(after), list(tokens)
    room = sequence.sampling.max_tokens - sequence.length - 1 - sum(len(step.tokens) for step in after)
    end = _tail(sequence) + b"".join(step.surface for step in after)
    constraint = after[-1].constraint if after else sequence.constraint
    most, apart = _most(sequence), spells(sequence)
    while coming and len(steps) < most:
        forced: list[int] = []
        if constraint is not None:
            try:
                if not constraint.admits(coming[0]):
                    break
                constraint = constraint.copy()
                constraint.take(coming[0])
                forced = constraint.forced()
                for token in forced:
                    constraint.take(token)
                if not constraint.is_open:
                    constraint.bits()  # what comes after the step is asked for with it
            except InvalidRequestError:  # the grammar becomes too complex there, if the answer goes there
                break
            if constraint.stopped:
                break
        step = coming[0], *forced
        surfaces = [sequence.surface(token) for token in step]
        end = (end + b"".join(surfaces))[-3:]
        room -= len(step)
        inside = apart and beginning_at_the_end(end)
        if room < 0 or inside or not all(surfaces) or not sequence.ends.ids.isdisjoint(step):
            break
        steps.append(Step(step, b"".join(surfaces), constraint))
        follows = tuple(coming[: len(step)]) == step
        coming = coming[len(step) :] if follows else []
    return tuple(steps)


def _most(sequence: Asking) -> int:
    """The steps that all boundaries of a draft can have: a sum looks at each of them again."""
    if sequence.terms is None:
        return sequence.sampling.max_tokens
    return min(sequence.view.models[name].member.capacity.rows for name in sequence.seats) - 1


def _tail(sequence: Asking) -> bytes:
    return bytes(sequence.written[-3:])


def spells(sequence: Asking) -> bool:
    """Whether a member spells the text in tokens of its own."""
    return any(seat.spelling is not None for seat in sequence.seats.values())
