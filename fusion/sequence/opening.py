"""Opening: the first tasks of a sequence's members, and what their answers to its prompt decide.

Where weights, the pivot or an echo depend on the prompt, it is scored while it is read: `plan_reading` gives out
what finds where, on any thread, and `begin_prompt` takes the result in; `begin_reading` gives out what evaluates
the members' answers, and `end_reading` takes that in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from math import nan

import numpy as np
from numpy.typing import NDArray

from alignment.errors import UnavailableError
from alignment.spelling import Spelling
from fusion.core import MOST_BIASED, Advance, Generate, Generated, Task, Token, TokenLogProb
from fusion.ensemble import View
from fusion.prompt.reading import PromptReading, Read
from fusion.prompt.scoring import PrefixScores
from fusion.sequence.sequence import Sequence
from fusion.terms import Terms


def settle_alone(sequence: Sequence) -> None:
    """Take the one member that there is, if there is one only, for the pivot."""
    if len(sequence.seats) == 1:
        turn_to(sequence, sequence.ensemble.view(next(iter(sequence.seats))))


def scores(sequence: Sequence) -> bool:
    """Return whether members score the prompt while they read it."""
    several = len(sequence.seats) > 1 and sequence.ensemble.scores(sequence.fusion)
    return sequence.sampling.prompt_logprobs is not None or several


def first_tasks(sequence: Sequence) -> Mapping[str, Task]:
    """Every member's first task, where none scores the prompt."""
    if _is_alone(sequence):
        return {sequence.view.pivot: _generate(sequence)}
    return {name: sequence.addressed(name, _prompt(sequence, name)) for name in sequence.seats}


Planned = tuple[PromptReading, dict[str, Advance]]
"""The reading of a prompt that is scored, and what each member is given for it."""


def plan_reading(sequence: Sequence, memory: PrefixScores) -> Callable[[], Planned]:
    """What finds out, on any thread, where the prompt is scored.

    Until `begin_prompt` takes the result the sequence is not ready.
    """
    sequence.is_reading = True
    prompt, pivot, members = sequence.prompt, sequence.view.pivot, list(sequence.seats)
    view = sequence.ensemble.view(pivot if pivot in members else members[0])
    terms = sequence.terms
    if terms is not None and not terms.weights.keys() <= set(members):  # a term is missing: the pivot leads alone
        terms = Terms({view.pivot: 1.0}, terms.mask)

    def plan() -> Planned:
        reading = PromptReading(
            sequence.ensemble, prompt, sequence.fusion, sequence.sampling, members, view, terms, memory
        )
        return reading, reading.advances(sequence.number)

    return plan


def begin_prompt(sequence: Sequence, planned: Planned) -> dict[str, Advance]:
    """The first tasks of the members that are still there: their prompts, to be scored."""
    sequence.reading, advances = planned
    sequence.is_reading = False
    if sequence.reading.pivot_first:
        sequence.later = {name: advances.pop(name) for name in list(advances) if name != sequence.reading.pivot}
    return {
        name: sequence.addressed(name, advance) for name, advance in advances.items() if name in sequence.seats
    }


def later_tasks(sequence: Sequence, each: Mapping[str, NDArray[np.int32]]) -> dict[str, Advance]:
    """The prompts of members that were to wait for what the pivot finds in it: the ids that each is to name."""
    later, sequence.later = sequence.later, {}
    return {
        name: sequence.addressed(name, replace(advance, each=each[name] if advance.scored else None))
        for name, advance in later.items()
        if name in sequence.seats
    }


def _is_alone(sequence: Sequence) -> bool:
    """Return whether there is nothing to fuse and its one member decodes by itself."""
    models, wanted = sequence.ensemble.models, sequence.fusion.report or sequence.prompt.constraints
    if len(models) > 1 or wanted or sequence.sampling.prompt_logprobs is not None or sequence.terms is not None:
        return False
    biased = len(sequence.sampling.logit_bias) + len(_barred(sequence))
    return models[sequence.view.pivot].member.capacity.generates and biased <= MOST_BIASED


def _generate(sequence: Sequence) -> Generate:
    """The task of a member that decodes by itself."""
    pivot, ends = sequence.view.pivot, sequence.ends
    adapter = sequence.ensemble.models[pivot].view.adapter
    ids, number = sequence.prompt.ids[pivot], sequence.numbers.of(pivot)
    return Generate(number, ids, sequence.sampling, sorted(ends.ids), sorted(_barred(sequence)), adapter)


def _barred(sequence: Sequence) -> Collection[int]:
    """The ends that a member that decodes by itself must not write."""
    return sequence.view.stop_ids - sequence.ends.wanted if sequence.sampling.ignore_eos else ()


def generated(sequence: Sequence, answer: Generated) -> Iterator[Token]:
    """The tokens that a member decoded by itself; each is to be written before the next is taken."""
    for row, token in enumerate(answer.tokens):
        if answer.ids is None or answer.logprobs is None:
            yield Token(TokenLogProb(token, sequence.surface(token), nan))  # not asked for
            continue
        ids, logprobs = answer.ids[row].tolist(), answer.logprobs[row].tolist()
        chosen, *top = (TokenLogProb(i, sequence.surface(i), p) for i, p in zip(ids, logprobs, strict=True))
        yield Token(chosen, tuple(top))


def _prompt(sequence: Sequence, name: str) -> Advance:
    """A member's prompt, and what was forced after it already."""
    seat, ids = sequence.seats[name], sequence.prompt.ids[name]
    if not sequence.tokens:
        return Advance(sequence.number, 0, ids)
    seat.extend(sequence.tokens, bytes(sequence.written))
    return Advance(sequence.number, 0, ids + (sequence.tokens if seat.spelling is None else seat.spelling.ids))


def begin_reading(sequence: Sequence) -> Callable[[], Read] | None:
    """What finds out, on any thread, what the prompt was scored for; None where it was not.

    The members have answered the prompt. Until `end_reading` the sequence is not ready again.
    """
    if sequence.reading is None:
        return None
    reading, sequence.reading, sequence.is_reading = sequence.reading, None, True
    answers = {name: seat.latest for name, seat in sequence.seats.items() if seat.latest and seat.votes}
    for name, answer in answers.items():  # what was scored is not needed any more
        sequence.seats[name].latest = replace(
            answer, ids=answer.ids[-1:], logprobs=answer.logprobs[-1:], appended_logprobs=None
        )
    return partial(reading.read, answers, dict(sequence.weights))


def end_reading(sequence: Sequence, read: Read) -> tuple[str, ...]:
    """Take what the prompt was scored for; returns who need not go on.

    Raises:
        UnavailableError: the member has left meanwhile whose tokens were to be emitted.
    """
    sequence.is_reading = False
    sequence.echoed = read.echoed
    if read.measured is None:
        return ()
    pivot, report = read.measured.pivot, read.measured.report
    sequence.weights = {name: read.measured.weights.get(name, 0.0) for name in sequence.members}
    sequence.weighting = report
    sequence.scored = read.scores if sequence.fusion.report else ()
    if pivot not in sequence.seats:
        raise UnavailableError(f"Member {pivot!r} was lost while the prompt was read; try again.")
    turn_to(sequence, sequence.ensemble.view(pivot))
    return tuple(name for name in report.pruned if name in sequence.seats)


def turn_to(sequence: Sequence, view: View) -> None:
    """Take the pivot of `view`, before anything is generated."""
    sequence.decided = True
    if view is sequence.view:
        return
    sequence.take_pivot(view)
    for name, seat in sequence.seats.items():  # what was named is named by other ids now
        seat.latest = seat.latest and replace(seat.latest, named=None)
        tokenizer = view.models[name].tokenizer
        seat.spelling = None if view.follows_ids(name) else Spelling(tokenizer, sequence.prompt.leads[name])


def asked_again(sequence: Sequence, before: View) -> dict[str, Advance]:
    """The end of the prompt once more, for members that picked their list under a constraint of `before`, or none.

    A prompt that decides on the pivot is read before it does. Under a constraint the members with the pivot's list
    say only what may come, and what may come first may be beyond their best tokens; the others say anything.
    """
    constraint, view = sequence.constraint, sequence.view
    if view is before or constraint is None or constraint.is_open:
        return {}
    advances = {}
    for name, seat in sequence.seats.items():
        if seat.latest is not None and before.follows_ids(name) != view.follows_ids(name):
            ids = sequence.prompt.ids[name]
            advances[name] = sequence.addressed(name, Advance(sequence.number, len(ids) - 1, ids[-1:]))
            seat.latest = None
    return advances
