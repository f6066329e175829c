"""Drafting: steps of a sequence given to its members ahead of their choice, and taken back where they differ.

A draft starts with `pursue`, after the policy has asked for it, and goes on or ends with `accepts` at every token.
"""

from __future__ import annotations

import numpy as np

from fusion.core import Advance
from fusion.policy.policy import ALL, Ask, Step
from fusion.sequence.sequence import Sequence


def pursue(sequence: Sequence) -> dict[str, Advance]:
    """Return what the members that are asked are given to score a draft; it ends where one cannot follow.

    A member's distribution counts at a boundary only where its spelling of the text up to there is a prefix of
    its spelling of the whole draft. One that drafts alone is given step after step, and may take some back.
    """
    if any(seat.state == "reading" and seat.latest for seat in sequence.seats.values()):
        for seat in sequence.seats.values():  # one that came back has read its part, and joins in a plain round
            seat.end_draft(0)
        sequence.asked = ALL
        return {}
    draft, alone = sequence.asked.draft, sequence.asked.members is not None
    reach = len(draft)
    advances: dict[str, Advance] = {}
    parts: dict[str, list[list[int]]] = {}
    for name, seat in sequence.seats.items():
        if not sequence.asks(name) or seat.state == "reading":
            continue
        if seat.points or (seat.votes and sequence.stands(seat)):
            reach = _lead_on(sequence, name, draft, reach, advances)
            continue
        advance = sequence.follow(name)
        if advance is None:
            reach = 0
            continue
        advances[name], parts[name] = advance, [list(advance.append)]
        seat.point(seat.rolled_back)
        for step in draft[:reach]:
            before = seat.cached - seat.prompt
            edit = seat.extend(step.tokens, step.surface)
            if edit.keep != before or not edit.append or seat.cached > seat.reserved:
                seat.back_to(seat.points[-1])
                break
            seat.point()
            parts[name].append(list(edit.append))
        reach = min(reach, len(seat.points) - 1)
    if alone and reach < len(draft):  # it cannot go on: what it has is checked
        sequence.asked = Ask(None, draft[:reach])
        return pursue(sequence) if reach else {}
    if not alone:
        ahead = {
            name for name, seat in sequence.seats.items() if name not in parts and len(seat.points) - 1 > reach
        }
        _cut(sequence, reach)
        if reach:
            advances |= {
                name: _scored(sequence, name, advances[name], pieces[: reach + 1], draft)
                for name, pieces in parts.items()
            }
        advances = {name: advance for name, advance in advances.items() if name not in ahead}
    sequence.draft = draft[:reach] if not alone else ()
    sequence.asked = Ask(sequence.asked.members, draft[:reach])
    return advances


def _scored(
    sequence: Sequence, name: str, advance: Advance, pieces: list[list[int]], draft: tuple[Step, ...]
) -> Advance:
    """A member's tokens up to a draft and of its steps, with the boundaries between them to be scored."""
    ends = np.cumsum([len(piece) for piece in pieces]) - 1
    append = [token for piece in pieces for token in piece]
    scored = Advance(sequence.number, advance.keep, append, "all", ends[:-1].tolist())
    constraints = [sequence.constraint, *(step.constraint for step in draft[: len(ends) - 1])]
    return sequence.addressed(name, scored, constraints)


def _cut(sequence: Sequence, reach: int) -> None:
    """Let all seats end the draft at the same boundary."""
    for seat in sequence.seats.values():
        if len(seat.points) - 1 > reach:
            seat.back_to(seat.points[reach])
            del seat.points[reach + 1 :]
            if seat.latest is None and seat.points[-1].answer is not None:
                seat.latest = seat.points[-1].answer


def _lead_on(
    sequence: Sequence, name: str, draft: tuple[Step, ...], reach: int, advances: dict[str, Advance]
) -> int:
    """Give a member that drafts its last step; returns how far the draft goes."""
    seat = sequence.seats[name]
    if not seat.points:
        seat.point(seat.rolled_back)
    seat.points[-1].answer = seat.latest
    at = len(seat.points) - 1
    if at >= reach:
        return reach
    cached = seat.cached
    edit = seat.extend(draft[at].tokens, draft[at].surface)
    if not edit.append or seat.cached > seat.reserved:
        seat.back_to(seat.points[-1])
        return at
    given = seat.given(edit)
    seat.rolled_back = cached - seat.prompt - edit.keep
    seat.point(seat.rolled_back)
    seat.latest, seat.standing = None, -1
    advance = Advance(sequence.number, seat.prompt + given.keep, given.append)
    advances[name] = sequence.addressed(name, advance, [draft[at].constraint])
    return min(reach, at + 1)


def accepts(sequence: Sequence, token: int) -> bool:
    """Return whether a chosen token is the draft's: the next can be chosen at once; else end the draft.

    What was forced after the token has been written.
    """
    if sequence.drafted(token):
        if sequence.constraint is not None:  # it stands there, and knows already what it admits
            sequence.constraint = sequence.draft[sequence.cursor].constraint
        sequence.cursor += 1
        return True
    if sequence.draft:
        sequence.policy.checked(len(sequence.draft), sequence.cursor)
    for seat in sequence.seats.values():
        seat.end_draft(sequence.cursor)
    sequence.draft, sequence.cursor = (), 0
    return False
