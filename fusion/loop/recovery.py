"""Recovery: members that fail and come back, and the sequences that end or go on without them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection

from alignment.errors import UnavailableError
from fusion.core import Advance, Down, Member
from fusion.ensemble import Ensemble
from fusion.loop.budget import Places
from fusion.loop.line import Line
from fusion.loop.observer import Leaving
from fusion.loop.outbox import Outbox
from fusion.sequence.sequence import Sequence

log = logging.getLogger(__name__)


class Attendance:
    """Members that are `down`: by name, why, and when to expect them back.

    Written by the fuser's thread, read by any.
    """

    def __init__(self) -> None:
        self.down: dict[str, Down] = {}

    def require(self, ensemble: Ensemble, members: Collection[str]) -> None:
        """UnavailableError when one of these members is down that the ensemble cannot do without, or all are."""
        none_left = self.down.keys() >= {ensemble.engine(name) for name in members}
        for name in members:
            down = self.down.get(ensemble.engine(name))
            if down is not None and (none_left or not ensemble.can_do_without(name)):
                raise unavailable(name, down)

    def hopeless(self, sequence: Sequence) -> UnavailableError | None:
        """Return the error that a waiting sequence must end with, if it must."""
        try:
            self.require(sequence.ensemble, sequence.seats)
            pivot = sequence.view.pivot
            down = self.down.get(sequence.ensemble.engine(pivot))
            if sequence.decided and down is not None:  # the prompt has decided on a member that is not there
                raise unavailable(pivot, down)
        except UnavailableError as error:
            return error
        return None


def unavailable(name: str, down: Down) -> UnavailableError:
    """The error of a request that needs a member which is down."""
    begin = f"Member {name!r} is down: {down.reason}."
    if down.retry_after is None:
        return UnavailableError(f"{begin} It runs inside the server, which has to be restarted.")
    seconds = max(1, math.ceil(down.retry_after))
    return UnavailableError(
        f"{begin} It is being started anew; try again in {seconds} seconds.", retry_after=seconds
    )


class Recovery:
    """Ends sequences, or takes members out of them and back in. Used by the fuser's thread only.

    `on_left` is called with a sequence that goes on without a member, and may be ready now.
    """

    def __init__(self, line: Line, places: Places, outbox: Outbox, on_left: Callable[[Sequence], None]) -> None:
        self.attendance = Attendance()
        self._line = line
        self._places = places
        self._outbox = outbox
        self._on_left = on_left

    def joined(self, sequence: Sequence) -> None:
        """A sequence waits: end it where a member has come back with less than it asks for."""
        small = self._places.budget.too_small(sequence, sequence.seats)
        if small is not None and self._line.cancel(sequence.number):
            error = f"Member {small!r} came back with less room; try again."
            self.fail(sequence, UnavailableError(error, retry_after=1))

    def lost(self, name: str, down: Down) -> None:
        """A member has lost its engine and everything cached."""
        if name not in self.attendance.down:
            self._outbox.news(self._outbox.observer.went_down, name)
        self.attendance.down[name] = down
        for sequence in self._line.in_turn():
            if error := self.attendance.hopeless(sequence):
                self._line.remove(sequence)
                self.fail(sequence, error)
        for sequence in list(self._places.open.values()):
            for member in sequence.on_engine(name):
                if sequence.number in self._places.open:
                    self.do_without(sequence, member, down.reason, unavailable(name, down), may_return=True)

    def do_without(
        self, sequence: Sequence, name: str, reason: str, error: Exception, *, may_return: bool = False
    ) -> None:
        """A member cannot go on with a sequence: it goes on with the others, or ends with `error`."""
        if not _can_do_without(sequence, name):
            self.fail(sequence, error)
            return
        self.leave(sequence, name, reason, "lost" if may_return else "failed")
        self._on_left(sequence)

    def regained(self, member: Member) -> None:
        """A member is back, with nothing cached: it reads again what the sequences hold that lost it."""
        del self.attendance.down[member.name]
        self._outbox.news(self._outbox.observer.came_back, member.name)
        self._places.budget.reset(member.name, member.capacity)
        for sequence in self._line.in_turn():
            self.joined(sequence)
        for sequence in self._places.open.values():
            for name in [one for one in sequence.lost if sequence.ensemble.engine(one) == member.name]:
                if not _misses(sequence, name):
                    continue
                try:
                    advance = _reopened(sequence, name)
                except Exception:
                    log.exception("sequence %d cannot take member %s back", sequence.number, name)
                    sequence.seats.pop(name, None)
                    continue
                if self._places.take_again(sequence, name):
                    self._places.hand(sequence, name, advance)
                else:
                    del sequence.seats[name]

    def leave(self, sequence: Sequence, name: str, reason: str, kind: Leaving) -> None:
        """Take a member out of a sequence."""
        log.warning("sequence %d goes on without member %s: %s", sequence.number, name, reason)
        self._places.leave(sequence, name)
        sequence.leave(name, reason, may_return=kind == "lost")
        self._outbox.news(self._outbox.observer.left, sequence.ensemble.name, name, kind)

    def begin_without(self, sequence: Sequence, name: str) -> None:
        """Start a sequence while a member is down."""
        down = self.attendance.down[sequence.ensemble.engine(name)]
        sequence.leave(name, down.reason, may_return=True)
        self._outbox.news(self._outbox.observer.left, sequence.ensemble.name, name, "lost")

    def fail(self, sequence: Sequence, error: Exception) -> None:
        """End a sequence with an error."""
        self._places.close(sequence)
        self._outbox.update(sequence.update, sequence.text.flush(), error=error)


def _can_do_without(sequence: Sequence, name: str) -> bool:
    """Return whether it goes on when this member fails."""
    others = len(sequence.seats) > 1 and sequence.ensemble.can_do_without(name)
    return others and not (sequence.decided and name == sequence.view.pivot)


def _misses(sequence: Sequence, name: str) -> bool:
    """Return whether a lost member would count if it came back: it has been given a weight."""
    has_weights = sequence.reading is None and not sequence.is_reading
    return name in sequence.lost and has_weights and sequence.weights[name] != 0


def _reopened(sequence: Sequence, name: str) -> Advance:
    """Give a member that was lost its seat back: what it must read before it can take part again.

    It reads while the others go on, so the text will have grown when it is done. Then `Sequence.follow` gives it
    the rest together with the next token.
    """
    seat = sequence.new_seat(name)
    seat.extend(sequence.tokens, bytes(sequence.written))
    read = sequence.tokens if seat.spelling is None else seat.spelling.ids
    seat.state = "reading"
    seat.reserved = max(seat.reserved, seat.cached)
    sequence.lost.remove(name)
    # In the order of all others: sequences are fused together when their voters are the same, in order.
    seats = {**sequence.seats, name: seat}
    sequence.seats = {member: seats[member] for member in sequence.members if member in seats}
    return sequence.addressed(name, Advance(sequence.number, 0, sequence.prompt.ids[name] + read))
