"""Drafting: tokens of a sequence given to its members ahead of their choice, and taken back where they differ.

A draft starts with `pursue`, after the policy has asked for it, and goes on or ends with `accepts` at every token.
"""

from __future__ import annotations

import numpy as np

from fusion.core import Advance
from fusion.policy.policy import ALL, Ask
from fusion.sequence.seat import Seat, State
from fusion.sequence.sequence import Sequence


def pursue(sequence: Sequence) -> dict[str, Advance]:
    """Return what the members that are asked are given to score a draft; it ends where one cannot follow.

    A member's distribution counts at a boundary only where its spelling of the text up to there is a prefix of
    its spelling of the whole draft. One that drafts alone is given token after token, and may take some back.
    """
    if any(seat.state is State.READING and seat.latest for seat in sequence.seats.values()):
        for seat in sequence.seats.values():  # one that came back has read its part, and joins in a plain round
            seat.end_draft(0, sequence.number)
        sequence.asked = ALL
        return {}
    draft, surfaces = sequence.asked.draft, [sequence.surface(token) for token in sequence.asked.draft]
    reach, alone = len(draft), sequence.asked.members is not None
    advances: dict[str, Advance] = {}
    parts: dict[str, list[list[int]]] = {}
    for name, seat in sequence.seats.items():
        if not sequence.asks(name) or seat.state is State.READING:
            continue
        told = seat.heard == len(sequence.written) and seat.followed == len(sequence.tokens)
        if seat.points or (seat.votes and seat.latest is not None and told):
            reach = _lead_on(sequence, seat, draft, surfaces, reach, advances, name)
            continue
        advance = sequence.follow(name)
        if advance is None:
            reach = 0
            continue
        advances[name] = advance
        seat.point(seat.rolled_back)
        parts[name] = [list(advance.append)]
        for token, surface in zip(draft[:reach], surfaces, strict=False):
            before = seat.cached - seat.prompt
            edit = seat.extend([token], surface)
            fits = edit.keep == before and bool(edit.append)
            if not fits or seat.cached > seat.reserved:
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
        for name, pieces in parts.items():
            if reach:
                ends = np.cumsum([len(piece) for piece in pieces[: reach + 1]]) - 1
                append = [token for piece in pieces[: reach + 1] for token in piece]
                advance = Advance(sequence.number, advances[name].keep, append, "all", ends[:-1].tolist())
                advances[name] = sequence.addressed(name, advance)
        advances = {name: advance for name, advance in advances.items() if name not in ahead}
    sequence.draft = draft[:reach] if not alone else ()
    sequence.asked = Ask(sequence.asked.members, draft[:reach])
    return advances


def _cut(sequence: Sequence, reach: int) -> None:
    """Let all seats end the draft at the same boundary."""
    for seat in sequence.seats.values():
        if len(seat.points) - 1 > reach:
            seat.back_to(seat.points[reach])
            del seat.points[reach + 1 :]
            if seat.latest is None and seat.points[-1].answer is not None:
                seat.latest = seat.points[-1].answer


def _lead_on(
    sequence: Sequence,
    seat: Seat,
    draft: tuple[int, ...],
    surfaces: list[bytes],
    reach: int,
    advances: dict[str, Advance],
    name: str,
) -> int:
    """Give a member that drafts its last token; returns how far the draft goes."""
    if not seat.points:
        seat.point(seat.rolled_back)
    seat.points[-1].answer = seat.latest
    at = len(seat.points) - 1
    if at >= reach:
        return reach
    cached = seat.cached
    edit = seat.extend([draft[at]], surfaces[at])
    if not edit.append or seat.cached > seat.reserved:
        seat.back_to(seat.points[-1])
        return at
    seat.point(cached - seat.prompt - edit.keep)
    seat.latest, seat.standing = None, -1
    advances[name] = sequence.addressed(name, Advance(sequence.number, seat.prompt + edit.keep, edit.append))
    return min(reach, at + 1)


def accepts(sequence: Sequence, token: int) -> bool:
    """Return whether a chosen token is the draft's: the next can be chosen at once; else end the draft."""
    if sequence.drafted(token):
        sequence.cursor += 1
        for seat in sequence.seats.values():
            if seat.points:
                seat.rolled_back = seat.points[sequence.cursor].rolled_back
        return True
    if sequence.draft:
        sequence.policy.checked(len(sequence.draft), sequence.cursor)
    for seat in sequence.seats.values():
        seat.end_draft(sequence.cursor, sequence.number)
    sequence.draft, sequence.cursor = (), 0
    return False
