"""The loop that moves every sequence: answers in, one fused token per ready sequence, advances out.

The fuser has one thread and one inbox. Members answer from their own threads, callers submit and cancel from
theirs; all of it becomes messages in the inbox. What has arrived is handled together, so sequences that are
ready at the same time are fused in one batch and their next advances reach each member in one call.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from time import perf_counter

from fusion.core import (
    Delivery,
    Delta,
    Down,
    Member,
    Prompt,
    Trouble,
    Up,
)
from fusion.ensemble import Ensemble
from fusion.loop.budget import Places
from fusion.loop.decoding import Decoding
from fusion.loop.line import Line, require_room, stopping
from fusion.loop.observer import Load, Observer, member_load
from fusion.loop.outbox import Outbox
from fusion.loop.recovery import Attendance
from fusion.options import FusionParams, SamplingParams
from fusion.policy.registry import require_policy
from fusion.prompt.scoring import PrefixScores
from fusion.sequence.sequence import Sequence


class Fuser:
    """Decodes sequences of any number of ensembles that share `members`."""

    def __init__(
        self, members: Mapping[str, Member], *, max_waiting: int = 256, views: Mapping[str, str] | None = None
    ) -> None:
        """`views` are names of views of these members, each with its member's, that `load` tells of as well."""
        self.members = dict(members)
        self._views = {name: engine for name, engine in (views or {}).items() if name not in members}
        self.line = Line(max_waiting)
        self._places = Places(self.members)
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._numbers = itertools.count(1)
        self._thread = threading.Thread(target=self._run, name="fuser", daemon=True)
        self.prefixes = PrefixScores()  # of the prompts read so far
        self._outbox = Outbox()
        self._decoding = Decoding(self.members, self.line, self._places, self._outbox, self._inbox.put)
        self._recovery = self._decoding.recovery

    # -- for callers, from any thread

    @property
    def observer(self) -> Observer:
        """Called with what happens."""
        return self._outbox.observer

    @observer.setter
    def observer(self, observer: Observer) -> None:
        self._outbox.observer = observer

    @property
    def attendance(self) -> Attendance:
        """The members that are down."""
        return self._recovery.attendance

    def start(self) -> None:
        """Start the members and the loop."""
        for member in self.members.values():
            member.start(self._deliver)
        self._thread.start()

    def end(self) -> None:
        """End every sequence with an error, and take none any more. From any thread; does not wait."""
        self._inbox.put(self._end)

    def stop(self) -> None:
        """End every sequence with an error, then stop the loop and the members. For good: there is no restart."""
        if self._thread.is_alive():
            self._inbox.put(None)
            self._thread.join()
        self._decoding.stop()
        with ThreadPoolExecutor(max(1, len(self.members))) as pool:  # a worker takes a moment to end
            list(pool.map(lambda member: member.stop(), self.members.values()))

    def alive(self) -> bool:
        """Return whether the loop runs."""
        return self._thread.is_alive()

    def troubled(self) -> dict[str, Trouble]:
        """Return the members that answer nothing, whether or not they are known to be down."""
        found = {name: member.trouble() for name, member in self.members.items()}
        return {name: trouble for name, trouble in found.items() if trouble is not None}

    def submit(
        self,
        ensemble: Ensemble,
        prompt: Prompt,
        sampling: SamplingParams,
        fusion: FusionParams,
        *,
        flow: str = "",
        on_update: Callable[[Delta], None],
    ) -> int:
        """Queue a sequence; returns its number. `on_update` is called on the fuser's thread and must not block.

        Args:
            flow: sequences of one flow are served first in first out, flows take turns.

        Raises:
            InvalidRequestError: prompt and `max_tokens` do not fit a member's context.
            OverloadedError: the waiting line is full.
            UnavailableError: the server is stopping, or a member is down that the ensemble cannot do without.
        """
        members = ensemble.taking_part(fusion)
        require_room(sampling.max_tokens, ensemble.max_new_tokens(prompt, members))
        limited = not all(constraint.admits_any_text for constraint in prompt.constraints.values())
        require_policy(fusion, sampling, members, limited=limited)
        self.attendance.require(ensemble, members)
        number = next(self._numbers)
        sequence = Sequence(number, ensemble, prompt, sampling, fusion, flow, on_update)
        self.line.put(sequence)
        self._inbox.put(partial(self._recovery.joined, sequence))
        return number

    def cancel(self, number: int) -> None:
        """End a sequence without a further update; frees its caches at once. Unknown numbers are ignored."""
        self._inbox.put(partial(self._cancel, number))

    def open_sequences(self) -> int:
        """Return the number of sequences that hold a place in the members' caches."""
        return len(self._places.open)

    def waiting_sequences(self) -> int:
        """Return the number of sequences that wait for a place."""
        return len(self.line)

    def load(self) -> Load:
        """Return the load, read from another thread: sequences that come or go meanwhile may be missed."""
        running = list(self._places.open.values())
        return Load(
            running=Counter(sequence.ensemble.name for sequence in running),
            waiting=Counter(sequence.ensemble.name for sequence in self.line.in_turn()),
            waiting_limit=self.line.limit,
            members={
                name: member_load(
                    self.members[engine],
                    running,
                    there=self.alive() and engine not in self.attendance.down,
                    heard=self._decoding.heard.get(engine, 0.0),
                    reserved=self._places.budget.reserved(engine),
                    view=view,
                )
                for name, engine, view in [
                    *((name, name, None) for name in self.members),
                    *((name, engine, name) for name, engine in self._views.items()),
                ]
            },
        )

    # -- the loop

    def _deliver(self, member: Member, what: Delivery) -> None:
        match what:
            case Down():
                self._inbox.put(partial(self._recovery.lost, member.name, what))
            case Up():
                self._inbox.put(partial(self._recovery.regained, member))
            case _:
                self._inbox.put(
                    partial(self._decoding.answered, member.name, what, perf_counter(), member.step_seconds)
                )

    def _run(self) -> None:
        try:
            self._loop()
        finally:  # however the loop ends, no caller is left waiting
            self._end()
            self._outbox.flush()

    def _end(self) -> None:
        for sequence in [*self._places.open.values(), *self.line.close()]:
            self._recovery.fail(sequence, stopping())

    def _loop(self) -> None:
        running = True
        while running:
            for message in self._arrived():
                if message is None:
                    running = False
                    break
                message()
            self._decoding.fuse_ready()
            self._admit()  # after the round, which may have ended sequences and freed their places
            if self._decoding.send():
                self._inbox.put(_nothing)
            self._outbox.flush()

    def _arrived(self) -> list[Callable[[], None] | None]:
        """Wait for a message, then take all that are there."""
        messages = [self._inbox.get()]
        with suppress(queue.Empty):
            while True:
                messages.append(self._inbox.get_nowait())
        return messages

    def _admit(self) -> None:
        """Start what waits, in turn: nobody takes room that a sequence further ahead can use.

        A sequence for which one member has no room yet claims what it needs in the others, so that these go on
        with what fits beside it. No more is claimed than a member that is waited for holds: what waits for longer
        starts when those ahead have left.
        """
        left = self._places.budget.copy()  # by those further ahead
        for sequence in self.line.in_turn():
            if all(map(left.full, self.members)):
                break
            if error := self.attendance.hopeless(sequence):
                self.line.remove(sequence)
                self._recovery.fail(sequence, error)
                continue
            down = self.attendance.down
            present = [name for name in sequence.seats if sequence.ensemble.engine(name) not in down]
            if any(left.claimed(sequence.ensemble.engine(name)) for name in present):
                continue
            fits = left.admits(sequence, present)
            left.take(sequence, present)
            if not fits:
                continue
            self.line.remove(sequence)
            self._places.take(sequence, present)
            for name in sequence.seats.keys() - set(present):
                self._recovery.begin_without(sequence, name)
            sequence.account.started = sequence.sent = perf_counter()
            self._decoding.open(sequence, self.prefixes)

    def _cancel(self, number: int) -> None:
        sequence = self._places.open.get(number)
        if sequence is not None:
            self._places.close(sequence)
        else:
            self.line.cancel(number)


def _nothing() -> None:
    """Wakes the loop up to look at the waiting line."""
