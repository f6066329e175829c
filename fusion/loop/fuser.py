"""The loop that moves every sequence: answers in, one fused token per ready sequence, advances out.

The fuser has one thread and one inbox. Members answer from their own threads, callers submit and cancel from
theirs; all of it becomes messages in the inbox. What has arrived is handled together, so sequences that are
ready at the same time are fused in one batch and their next advances reach each member in one call.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from time import perf_counter

from alignment.errors import RequestError, UnavailableError
from fusion.core import AdvanceFailed, Answer, Delivery, Down, Generated, Member, Prompt, Token, Up, Update
from fusion.ensemble import Ensemble
from fusion.loop.budget import Places
from fusion.loop.line import STOPPING, Line, require_room
from fusion.loop.observer import Leaving, Load, Observer, Rounds, member_load, take_account
from fusion.loop.recovery import Attendance, unavailable
from fusion.options import FusionParams, SamplingParams
from fusion.prompt.scoring import PrefixScores
from fusion.round import Fused, Outcome, batch_key, fuse
from fusion.sequence.sequence import Sequence

log = logging.getLogger(__name__)


class Fuser:
    """Decodes sequences of any number of ensembles that share `members`."""

    def __init__(self, members: Mapping[str, Member], *, max_waiting: int = 256) -> None:
        self.members = dict(members)
        self.line = Line(max_waiting)
        self._places = Places(self.members)
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._numbers = itertools.count(1)
        self._thread = threading.Thread(target=self._run, name="fuser", daemon=True)
        self._ready: dict[int, Sequence] = {}
        self._going: list[Sequence] = []  # those that a round has added a token to
        self.attendance = Attendance()
        self.prefixes = PrefixScores()  # of the prompts read so far
        self.observer = Observer()
        # Once the members are at work: for the callers, then for the observer.
        self._updates: list[Callable[[], None]] = []
        self._news: list[Callable[[], None]] = []
        self._sent = 0.0  # when the first member was last given work
        self._heard: dict[str, float] = {}  # when each member last answered anybody

    # -- for callers, from any thread

    def start(self) -> None:
        """Start the members and the loop."""
        for member in self.members.values():
            member.start(self._deliver)
        self._thread.start()

    def stop(self) -> None:
        """End every sequence with an error, then stop the loop and the members. For good: there is no restart."""
        if self._thread.is_alive():
            self._inbox.put(None)
            self._thread.join()
        with ThreadPoolExecutor(max(1, len(self.members))) as pool:  # a worker takes a moment to end
            list(pool.map(lambda member: member.stop(), self.members.values()))

    def alive(self) -> bool:
        """Whether the loop runs."""
        return self._thread.is_alive()

    def submit(
        self,
        ensemble: Ensemble,
        prompt: Prompt,
        sampling: SamplingParams,
        fusion: FusionParams,
        *,
        flow: str = "",
        on_update: Callable[[Update], None],
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
        self.attendance.require(ensemble, members)
        number = next(self._numbers)
        self.line.put(Sequence(number, ensemble, prompt, sampling, fusion, flow, on_update))
        self._inbox.put(_nothing)
        return number

    def cancel(self, number: int) -> None:
        """End a sequence without a further update; frees its caches at once. Unknown numbers are ignored."""
        self._inbox.put(partial(self._cancel, number))

    def open_sequences(self) -> int:
        """How many sequences hold a place in the members' caches."""
        return len(self._places.open)

    def waiting_sequences(self) -> int:
        """How many sequences wait for a place."""
        return len(self.line)

    def load(self) -> Load:
        """How busy it is. A look from another thread, so sequences that come or go meanwhile may be missed."""
        running = list(self._places.open.values())
        return Load(
            running=Counter(sequence.ensemble.name for sequence in running),
            waiting=Counter(sequence.ensemble.name for sequence in self.line.in_turn()),
            waiting_limit=self.line.limit,
            members={
                name: member_load(
                    member,
                    running,
                    there=self.alive() and name not in self.attendance.down,
                    heard=self._heard.get(name, 0.0),
                    reserved=self._places.budget.reserved(name),
                )
                for name, member in self.members.items()
            },
        )

    # -- the loop

    def _deliver(self, member: Member, what: Delivery) -> None:
        match what:
            case Down():
                self._inbox.put(partial(self._lost, member.name, what))
            case Up():
                self._inbox.put(partial(self._regained, member))
            case _:
                self._inbox.put(partial(self._answered, member.name, what, perf_counter(), member.step_seconds))

    def _run(self) -> None:
        try:
            self._loop()
        finally:  # however the loop ends, nobody is left waiting
            for sequence in [*self._places.open.values(), *self.line.close()]:
                self._fail(sequence, UnavailableError(STOPPING))
            self._tell()

    def _loop(self) -> None:
        running = True
        while running:
            for message in self._arrived():
                if message is None:
                    running = False
                    break
                message()
            self._fuse_ready()
            self._admit()  # after the round, which may have ended sequences and freed their places
            self._send()
            self._tell()

    def _arrived(self) -> list[Callable[[], None] | None]:
        """Wait for a message, then take all that are there."""
        messages = [self._inbox.get()]
        with suppress(queue.Empty):
            while True:
                messages.append(self._inbox.get_nowait())
        return messages

    def _answered(self, name: str, answers: list[Answer], arrived: float, step_seconds: float) -> None:
        self._heard[name] = arrived
        prompts, tokens = [], []  # how long the answers took
        for answer in answers:
            sequence = self._places.open.get(answer.sequence)
            if sequence is None or name not in sequence.seats:
                continue  # closed while the member was at it
            if isinstance(answer, AdvanceFailed):
                error = UnavailableError(f"Member {name!r} failed: {answer.reason}")
                self._do_without(sequence, name, answer.reason, error)
                continue
            if isinstance(answer, Generated):
                if name not in sequence.account.prompts:
                    sequence.account.prompts[name] = arrived
                    prompts.append(arrived - sequence.sent)
                self._generated(sequence, name, answer)
                continue
            seat = sequence.seats[name]
            seat.latest = answer
            if seat.catching_up is not None:
                continue  # it takes part when the next token is handed out
            sequence.arrived.append((name, arrived))
            if name in sequence.account.prompts:
                tokens.append(arrived - sequence.sent)
            else:
                sequence.account.prompts[name] = arrived
                prompts.append(arrived - sequence.sent)
            if sequence.ready:
                self._ready[sequence.number] = sequence
        self._news.append(partial(self.observer.answered, name, step_seconds, prompts, tokens))

    def _generated(self, sequence: Sequence, name: str, answer: Generated) -> None:
        """Take in what a member has decoded by itself."""
        sequence.seats[name].followed += len(answer.tokens)
        try:
            for token in sequence.tokens_of(answer):
                goes_on = self._add(sequence, token)
                if not goes_on:
                    return
            if answer.finished:  # an engine that stops where it was not told to
                self._places.close(sequence)
                self._updates.append(partial(sequence.update, sequence.text.flush(), finish="length"))
        except Exception:
            self._failed_inside(sequence)

    # -- members that fail

    def _lost(self, name: str, down: Down) -> None:
        if name not in self.attendance.down:
            self._news.append(partial(self.observer.went_down, name))
        self.attendance.lose(name, down)
        for sequence in self.line.in_turn():
            if error := self.attendance.hopeless(sequence):
                self.line.remove(sequence)
                self._fail(sequence, error)
        for sequence in list(self._places.open.values()):
            if name in sequence.seats:
                self._do_without(sequence, name, down.reason, unavailable(name, down), may_return=True)

    def _do_without(
        self, sequence: Sequence, name: str, reason: str, error: Exception, *, may_return: bool = False
    ) -> None:
        """A member cannot go on with a sequence: it goes on with the others, or ends with `error`."""
        if len(sequence.seats) == 1 or not sequence.ensemble.can_do_without(name):
            self._fail(sequence, error)
            return
        self._leave(sequence, name, reason, "lost" if may_return else "failed")
        if sequence.ready:
            self._ready[sequence.number] = sequence

    def _regained(self, member: Member) -> None:
        """A member is back, with nothing cached: what it was lost to reads it all again, and is joined by it."""
        self.attendance.regain(member.name)
        self._news.append(partial(self.observer.came_back, member.name))
        self._places.budget.reset(member.name, member.capacity)
        for sequence in self.line.in_turn():
            seat = sequence.seats.get(member.name)
            if seat is not None and seat.reserved > member.capacity.context:
                self.line.remove(sequence)
                self._fail(
                    sequence, UnavailableError(f"Member {member.name!r} came back with less room; try again.")
                )
        for sequence in self._places.open.values():
            if sequence.misses(member.name):
                advance = sequence.reopen(member.name)
                if self._places.take_again(sequence, member):
                    self._places.hand(member.name, advance)
                else:
                    del sequence.seats[member.name]

    # -- rounds

    def _admit(self) -> None:
        blocked: set[str] = set()  # members whose next room belongs to somebody further ahead
        for sequence in self.line.in_turn():
            if blocked.issuperset(self.members):
                break
            if error := self.attendance.hopeless(sequence):
                self.line.remove(sequence)
                self._fail(sequence, error)
                continue
            present = sequence.seats.keys() - self.attendance.down.keys()
            if not blocked.isdisjoint(present) or not self._places.budget.admits(sequence, present):
                blocked.update(present)
                continue
            self.line.remove(sequence)
            self._places.take(sequence, present)
            for name in sequence.seats.keys() - present:
                sequence.leave(name, self.attendance.down[name].reason, may_return=True)
                self._news.append(partial(self.observer.left, sequence.ensemble.name, name, "lost"))
            sequence.account.started = sequence.sent = perf_counter()
            for name, advance in sequence.open(self.prefixes).items():
                self._places.hand(name, advance)

    def _fuse_ready(self) -> None:
        batches: defaultdict[object, list[Sequence]] = defaultdict(list)
        for sequence in self._ready.values():
            if sequence.number in self._places.open and self._read_prompt(sequence):
                batches[batch_key(sequence)].append(sequence)
        self._ready = {}
        for batch in batches.values():
            for sequences, fused in self._fuse(batch):
                self._news.append(partial(self._tell_round, sequences, take_account(sequences, fused)))
                for sequence, outcome in zip(sequences, fused.outcomes, strict=True):
                    try:
                        self._emit(sequence, outcome)
                    except Exception:
                        self._failed_inside(sequence)

    def _read_prompt(self, sequence: Sequence) -> bool:
        """Before its first round a sequence may find its weights in the prompt, and go on without some members."""
        try:
            closed = sequence.read_prompt()
        except Exception:
            self._failed_inside(sequence)
            return False
        if sequence.weighting is not None and not sequence.account.rounds:
            self._news.append(partial(self.observer.weighed, sequence.ensemble.name, sequence.weighting))
        for name in closed:
            self._places.leave(sequence, name)
            del sequence.seats[name]
        return True

    def _fuse(self, batch: list[Sequence]) -> list[tuple[list[Sequence], Fused]]:
        """A round of a batch; a defect that one sequence meets costs that sequence alone."""
        try:
            return [(batch, fuse(batch))]
        except Exception:
            if len(batch) == 1:
                self._failed_inside(batch[0])
                return []
            return [pair for sequence in batch for pair in self._fuse([sequence])]

    def _failed_inside(self, sequence: Sequence) -> None:
        log.exception("a round of sequence %d failed", sequence.number)
        if sequence.number in self._places.open:
            self._fail(sequence, RequestError("A round failed inside the server; see its log."))

    def _emit(self, sequence: Sequence, outcome: Outcome) -> None:
        """Add the chosen token to the sequence."""
        if outcome.report is not None:
            sequence.rounds.append(outcome.report)
        if self._add(sequence, outcome.token):
            self._going.append(sequence)

    def _add(self, sequence: Sequence, token: Token) -> bool:
        """Add a token to the sequence, and end it if that is the last; returns whether it goes on."""
        text, finish, reason = sequence.add(token)
        if finish is not None:
            self._places.close(sequence)
        self._updates.append(partial(sequence.update, text, (token,), finish, reason))
        return finish is None

    def _advance(self, sequence: Sequence, name: str) -> None:
        """Have the member's next work for the sequence, if there is any."""
        if (advance := sequence.follow(name)) is None:
            return
        if tokens := sequence.seats[name].rolled_back:
            self._news.append(partial(self.observer.rolled_back, sequence.ensemble.name, name, tokens))
        if self._places.make_room(sequence, name):
            self._places.hand(name, advance)
        else:
            self._leave(sequence, name, "the text outgrew its cache", "outgrown")

    def _leave(self, sequence: Sequence, name: str, reason: str, kind: Leaving) -> None:
        log.warning("sequence %d goes on without member %s: %s", sequence.number, name, reason)
        self._places.leave(sequence, name)
        sequence.leave(name, reason, may_return=kind == "lost")
        self._news.append(partial(self.observer.left, sequence.ensemble.name, name, kind))

    def _cancel(self, number: int) -> None:
        sequence = self._places.open.get(number)
        if sequence is not None:
            self._places.close(sequence)
        else:
            self.line.cancel(number)

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        self._places.close(sequence)
        self._updates.append(partial(sequence.update, sequence.text.flush(), error=error))

    def _send(self) -> None:
        """Give every member its next work, first the one whose answer came last: it may well be the slowest."""
        going, self._going, refused = self._going, [], []
        for turn, name in enumerate(sorted(self.members, key=lambda name: -self._heard.get(name, 0.0))):
            for sequence in going:
                if name in sequence.seats and sequence.number in self._places.open:
                    try:
                        self._advance(sequence, name)
                    except Exception:
                        self._failed_inside(sequence)
            if turn == 0:
                self._sent = perf_counter()
            refused += [(name, *pair) for pair in self._places.send(name)]
        for name, sequence, error in refused:
            if sequence.number not in self._places.open:
                continue  # another member has refused it too
            reason = f"it takes no work: {error}"
            self._do_without(sequence, name, reason, UnavailableError(f"Member {name!r} failed: {reason}"))
        if refused:
            self._inbox.put(_nothing)  # others may be ready without that member

    def _tell_round(self, sequences: list[Sequence], rounds: Rounds) -> None:
        for sequence in sequences:
            sequence.sent = self._sent
        rounds.synchronisation = self._sent - rounds.ended
        self.observer.fused(rounds)

    def _tell(self) -> None:
        """Tell callers and observer what there is to tell, now that the members are at work."""
        for update in self._updates:
            update()
        self._updates.clear()
        for tell in self._news:
            try:
                tell()
            except Exception:  # a defect in measuring must not end the decoding
                log.exception("the observer failed")
        self._news.clear()


def _nothing() -> None:
    """Wakes the loop up to look at the waiting line."""
