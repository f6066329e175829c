"""Decoding: answers of members in, one fused token per ready sequence, advances out."""

from __future__ import annotations

import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from alignment.errors import RequestError, UnavailableError
from fusion.core import Advance, AdvanceFailed, Answer, Generated, Looked, Member, NextTokens, Token
from fusion.loop.budget import Places
from fusion.loop.line import Line
from fusion.loop.outbox import Outbox
from fusion.loop.recovery import Recovery
from fusion.loop.timing import account_for
from fusion.policy.pace import Costs
from fusion.policy.policy import ALL
from fusion.prompt.reading import Read
from fusion.prompt.scoring import PrefixScores
from fusion.reports import RoundReport
from fusion.round import Round, batch_key, run_round, undo_of
from fusion.sequence.constraint import fill
from fusion.sequence.drafting import accepts, pursue
from fusion.sequence.looks import begin_sum, take_look
from fusion.sequence.opening import (
    Planned,
    asked_again,
    begin_prompt,
    begin_reading,
    end_reading,
    first_tasks,
    generated,
    later_tasks,
    plan_reading,
    scores,
    settle_alone,
)
from fusion.sequence.sequence import Sequence

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Decoding:
    """Moves open sequences from round to round. Used by the fuser's thread only, but for `heard`.

    `call` has that thread call a function, from any other.
    """

    def __init__(
        self,
        members: Mapping[str, Member],
        line: Line,
        places: Places,
        outbox: Outbox,
        call: Callable[[Callable[[], None]], None],
    ) -> None:
        self.heard: dict[str, float] = {}  # when each member last answered anybody
        self.recovery = Recovery(line, places, outbox, self.settle)
        self._members = members
        self._places = places
        self._outbox = outbox
        self._call = call
        # Of prompts that are scored, one after the other: one finds out where, the other evaluates the answers to
        # long ones, which nobody's first token is to wait for.
        self._planners = ThreadPoolExecutor(1, thread_name_prefix="planner")
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._ready: dict[int, Sequence] = {}
        self._going: dict[int, Sequence] = {}  # those whose members are to be given work
        self._costs = Costs()
        self._sent = 0.0  # when the first member was last given work

    def open(self, sequence: Sequence, memory: PrefixScores) -> None:
        """Hand every member its prompt, with what a constraint forces after it where that can be known."""
        try:
            settle_alone(sequence)
            if sequence.weighting is not None:  # the text of the prompt was enough
                self._outbox.news(self._outbox.observer.weighed, sequence.ensemble.name, sequence.weighting)
            if scores(sequence):
                plan = plan_reading(sequence, memory)
                self._aside(sequence, plan, partial(self._hand_prompts, sequence), on=self._planners)
            elif self._write_forced(sequence, whole=True):
                for name, task in first_tasks(sequence).items():
                    if isinstance(task, Advance):
                        self._hand(sequence, name, task)
                    else:
                        self._places.hand(sequence, name, task)
        except Exception:
            self._failed_inside(sequence)

    def _hand_prompts(self, sequence: Sequence, planned: Planned) -> None:
        """Have the members read and score a prompt."""
        sequence.sent = perf_counter()
        for name, advance in begin_prompt(sequence, planned).items():
            self._hand(sequence, name, advance)

    def _write_forced(self, sequence: Sequence, *, whole: bool = False) -> bool:
        """Add the tokens that a constraint forces, for which no member is asked; returns whether it goes on."""
        if sequence.constraint is None:
            return True
        for token in sequence.forced(whole=whole):
            report = sequence.forced_report(token)
            if report is not None:
                sequence.rounds.append(report)
            if not self._add(sequence, token, report):
                return False
        return True

    def answered(self, engine: str, answers: list[Answer], arrived: float, step_seconds: float) -> None:
        """Take in what the engine of one or several members says."""
        self.heard[engine] = arrived
        prompts: defaultdict[str, list[float]] = defaultdict(list)  # how long the answers took, by member
        tokens: defaultdict[str, list[float]] = defaultdict(list)
        holders = self._places.holders
        for answer in answers:
            holder = holders.get((engine, answer.sequence))
            if holder is None:
                continue  # closed while the engine was at it
            try:
                self._take(*holder, answer, arrived, prompts, tokens)
            except Exception:
                self._failed_inside(holder[0])
        if step_seconds and tokens and not prompts and all(_is_one(answer) for answer in answers):
            self._costs.passed(engine, step_seconds)
        for name in prompts.keys() | tokens.keys() | {engine}:
            step = step_seconds if name == engine else 0.0
            self._outbox.news(self._outbox.observer.answered, name, step, prompts[name], tokens[name])

    def _take(
        self,
        sequence: Sequence,
        name: str,
        answer: Answer,
        arrived: float,
        prompts: defaultdict[str, list[float]],
        tokens: defaultdict[str, list[float]],
    ) -> None:
        """Take in an answer of a member, and note how long it took in `prompts` or `tokens`."""
        if isinstance(answer, Looked):
            take_look(sequence, name, answer.logprobs)
            self.settle(sequence)
            return
        if isinstance(answer, AdvanceFailed):
            error = UnavailableError(f"Member {name!r} failed: {answer.reason}", retry_after=1)
            self.recovery.do_without(sequence, name, answer.reason, error)
            return
        seat = sequence.seats[name]
        if isinstance(answer, NextTokens):
            seat.latest = answer
            if sequence.later and name == sequence.view.pivot and sequence.reading is not None:
                search = partial(sequence.reading.about, answer)
                self._aside(sequence, search, partial(self._hand_later, sequence), on=self._readers)
            if seat.state == "reading":
                return  # it takes part when the next token is handed out
            sequence.arrived.append((name, arrived))
        if name not in sequence.account.prompts:
            sequence.account.prompts[name] = arrived
            sequence.account.reused[name] = answer.reused
            prompts[name].append(arrived - sequence.sent)
        elif isinstance(answer, NextTokens):
            tokens[name].append(arrived - sequence.sent)
        if isinstance(answer, Generated):
            self._generated(sequence, name, answer)
        else:
            self.settle(sequence)

    def settle(self, sequence: Sequence) -> None:
        """Have a round for a sequence if all that it asks have answered, unless its policy asks on."""
        if not sequence.ready or sequence.number in self._ready or sequence.number in self._going:
            return
        more = None
        try:
            sequence.complete_characters()
            if not sequence.voters:  # those that were asked have left, or say nothing inside a character
                more = ALL
            elif sequence.account.rounds and not sequence.cursor:
                more = sequence.policy.answered(sequence)
        except Exception:
            self._failed_inside(sequence)
            return
        if more is None:
            self._begin_round(sequence)
        else:
            sequence.arrived.clear()  # what is timed is the wait for those that are asked last
            sequence.ask(more)
            self._going[sequence.number] = sequence

    def _begin_round(self, sequence: Sequence) -> None:
        """Have a round of a sequence whose members have answered; a sum has them look at its candidates first."""
        if sequence.terms is not None and sequence.reading is None and sequence.sum is None:
            try:
                sequence.sum, looks = begin_sum(sequence)
            except Exception:
                self._failed_inside(sequence)
                return
            for name, look in looks.items():
                self._places.hand(sequence, name, look)
            if looks:
                return
        self._ready[sequence.number] = sequence

    def _generated(self, sequence: Sequence, name: str, answer: Generated) -> None:
        """Take in what a member has decoded by itself."""
        sequence.seats[name].followed += len(answer.tokens)
        try:
            for token in generated(sequence, answer):
                goes_on = self._add(sequence, token)
                if not goes_on:
                    return
            if answer.finished:  # an engine that stops where it was not asked to
                self._places.close(sequence)
                self._outbox.update(sequence.update, sequence.text.flush(cut=True), finish="length")
        except Exception:
            self._failed_inside(sequence)

    def fuse_ready(self) -> None:
        """Have a round of every sequence that is ready."""
        while self._ready:  # a sequence whose draft holds is ready again at once
            batches: defaultdict[object, list[Sequence]] = defaultdict(list)
            ready, self._ready = self._ready, {}
            for sequence in ready.values():
                if sequence.number not in self._places.open or not self._read_prompt(sequence):
                    continue
                if not sequence.voters:  # the one that was asked has left since
                    self.settle(sequence)
                elif sequence.terms is not None and sequence.sum is None:
                    self._begin_round(sequence)
                else:
                    batches[batch_key(sequence)].append(sequence)
            for batch in batches.values():
                for sequences, done in self._fuse(batch):
                    self._take_round(sequences, done)

    def _take_round(self, sequences: list[Sequence], done: Round) -> None:
        account_for(sequences, done)
        if done.waiting and all(sequence.asked is ALL for sequence in sequences):
            self._costs.waited(done.model, min(done.waiting))
        self._outbox.news(self._round_over, sequences, done)
        for sequence, token, report in zip(sequences, done.tokens, done.reports, strict=True):
            try:
                self._emit(sequence, token, report)
            except Exception:
                self._failed_inside(sequence)

    def _read_prompt(self, sequence: Sequence) -> bool:
        """Before its first round a sequence may find its weights in the prompt; False while that takes time."""
        try:
            is_long = sequence.reading is not None and sequence.reading.is_long
            evaluate = begin_reading(sequence)
            if evaluate is None:
                return True
            if is_long:
                self._aside(sequence, evaluate, partial(self._has_read, sequence), on=self._readers)
                return False
            read = evaluate()
        except Exception:
            self._failed_inside(sequence)
            return False
        return self._take_reading(sequence, read)

    def _aside(
        self, sequence: Sequence, work: Callable[[], Result], then: Callable[[Result], None], *, on: Executor
    ) -> None:
        """Do long work for a sequence beside decoding, and go on with its result unless the sequence is over."""

        def is_over() -> bool:
            return sequence.number not in self._places.open

        def worked() -> Result | None:
            return None if is_over() else work()

        def came(done: Future[Result | None]) -> None:
            if is_over() or done.cancelled():
                return
            try:
                then(cast("Result", done.result()))
            except Exception:
                self._failed_inside(sequence)

        on.submit(worked).add_done_callback(lambda done: self._call(partial(came, done)))

    def _hand_later(self, sequence: Sequence, each: Mapping[str, NDArray[np.int32]]) -> None:
        """Hand out the prompts that waited for what the pivot found in it."""
        for name, advance in later_tasks(sequence, each).items():
            self._places.hand(sequence, name, advance)
        self.settle(sequence)

    def _has_read(self, sequence: Sequence, read: Read) -> None:
        """A prompt was evaluated on another thread."""
        if self._take_reading(sequence, read):
            self.settle(sequence)

    def _take_reading(self, sequence: Sequence, read: Read) -> bool:
        """Take what a prompt was scored for, and go on without some members; False where it does not go on yet."""
        before = sequence.view
        try:
            closed = end_reading(sequence, read)
            if read.measured is not None and sequence.weighting is not None and not sequence.account.rounds:
                self._outbox.news(self._outbox.observer.weighed, sequence.ensemble.name, sequence.weighting)
            for name in closed:
                self._places.leave(sequence, name)
                del sequence.seats[name]
            again = asked_again(sequence, before)
        except UnavailableError as error:
            self.recovery.fail(sequence, error)
            return False
        except Exception:
            self._failed_inside(sequence)
            return False
        if again:
            sequence.sent = perf_counter()
        for name, advance in again.items():
            self._places.hand(sequence, name, advance)
        return not again

    def stop(self) -> None:
        """Plan and evaluate no more prompts."""
        for threads in (self._planners, self._readers):
            threads.shutdown(wait=False, cancel_futures=True)

    def _fuse(self, batch: list[Sequence]) -> list[tuple[list[Sequence], Round]]:
        """A round of a batch; a defect that one sequence meets costs that sequence alone, and no other a draw."""
        undo = undo_of(batch) if len(batch) > 1 else None
        try:
            return [(batch, run_round(batch))]
        except Exception:
            if undo is None:
                self._failed_inside(batch[0])
                return []
            undo()
            return [pair for sequence in batch for pair in self._fuse([sequence])]

    def _failed_inside(self, sequence: Sequence) -> None:
        error = sys.exception()
        if not isinstance(error, RequestError):  # such as a grammar that has grown too complex
            log.exception("a round of sequence %d failed", sequence.number)
            error = RequestError("A round failed inside the server; see its log.")
        if sequence.number in self._places.open:
            self.recovery.fail(sequence, error)

    def _emit(self, sequence: Sequence, token: Token, report: RoundReport | None) -> None:
        """Add the chosen token to the sequence."""
        if report is not None:
            sequence.rounds.append(report)
        drafted, accepted = len(sequence.draft), sequence.cursor + sequence.drafted(token.chosen.id)
        sequence.sum = None
        goes_on = self._add(sequence, token, report) and self._write_forced(sequence)
        if drafted and not (goes_on and accepted > sequence.cursor):
            self._outbox.news(self._outbox.observer.drafted, sequence.ensemble.name, drafted, accepted, 0)
        if goes_on:
            if accepts(sequence, token.chosen.id):
                self._begin_round(sequence)
                return
            sequence.company, sequence.costs = len(self._places.open), self._costs
            sequence.ask(sequence.policy.ask(sequence))
            self._going[sequence.number] = sequence

    def _add(self, sequence: Sequence, token: Token, report: RoundReport | None = None) -> bool:
        """Add a token to the sequence, and end it if that is the last; returns whether it goes on."""
        text, finish, reason = sequence.add(token)
        if finish is not None:
            self._places.close(sequence)
        self._outbox.update(sequence.update, text, (token,), finish, reason, report=report)
        return finish is None

    def _pursue(self, sequence: Sequence) -> bool:
        """Have the members' work on a draft; returns whether any of them was given some."""
        proposed = len(sequence.asked.draft)
        advances = pursue(sequence)
        if lost := proposed - len(sequence.asked.draft):
            self._outbox.news(self._outbox.observer.drafted, sequence.ensemble.name, 0, 0, lost)
        for name, advance in advances.items():
            self._hand(sequence, name, advance)
        return bool(advances)

    def _hand(self, sequence: Sequence, name: str, advance: Advance) -> None:
        if tokens := sequence.seats[name].rolled_back:
            self._outbox.news(self._outbox.observer.rolled_back, sequence.ensemble.name, name, tokens)
        if self._places.make_room(sequence, name):
            self._places.hand(sequence, name, advance)
        else:
            self.recovery.leave(sequence, name, "the text outgrew its cache", "outgrown")

    def send(self) -> bool:
        """Give every member its next work, first the one whose answer came last: it may well be the slowest.

        Those that pick their candidates under a mask come last: the others run while the masks are computed.
        Returns whether sequences are ready already, or have more to be given.
        """
        going, self._going, refused = list(self._going.values()), {}, []
        limited = [sequence for sequence in going if sequence.constraint is not None]
        masked = {
            engine
            for engine in (self._members if limited else ())
            if any(one.view.follows_ids(name) for one in limited for name in one.on_engine(engine))
        }
        pursued: set[int] = set()  # a draft that no member can follow still gives them the text so far
        for sequence in going:
            if sequence.asked.draft and sequence.number in self._places.open:
                try:
                    if self._pursue(sequence):
                        pursued.add(sequence.number)
                except Exception:
                    self._failed_inside(sequence)
        order = sorted(self._members, key=lambda name: (name in masked, -self.heard.get(name, 0.0)))
        for turn, engine in enumerate(order):
            if engine in masked:
                self._fill(limited)
            for sequence in going:
                waits = not sequence.asked.draft and sequence.number not in pursued
                if waits and sequence.number in self._places.open:
                    self._follow(sequence, engine)
            if turn == 0:
                self._sent = perf_counter()
            refused += self._places.send(engine)
        for sequence, name, error in refused:
            if sequence.number not in self._places.open or name not in sequence.seats:
                continue  # another member has refused it too
            reason = f"it takes no work: {error}"
            failed = UnavailableError(f"Member {name!r} failed: {reason}", retry_after=1)
            self.recovery.do_without(sequence, name, reason, failed)
        for sequence in going:
            if sequence.number in self._places.open:
                self.settle(sequence)  # the last answers of those asked may still stand
        return bool(self._ready or self._going)

    def _fill(self, limited: list[Sequence]) -> None:
        """Compute the masks of sequences together, of those that have none yet."""
        try:
            fill(sequence.constraint for sequence in limited if sequence.constraint is not None)
        except Exception:  # whichever it was fails when it is asked by itself
            log.debug("the masks of a batch failed", exc_info=True)

    def _follow(self, sequence: Sequence, engine: str) -> None:
        """Have an engine's work on what was written: that of all members that it runs, for one pass."""
        try:
            for name in sequence.numbers.names(engine):
                if sequence.asks(name) and (advance := sequence.follow(name)) is not None:
                    self._hand(sequence, name, advance)
        except Exception:
            self._failed_inside(sequence)

    def _round_over(self, sequences: list[Sequence], done: Round) -> None:
        for sequence in sequences:
            sequence.sent = self._sent
        done.synchronisation = self._sent - done.ended
        self._outbox.observer.fused(done)


def _is_one(answer: Answer) -> bool:
    """Return whether an answer is the distribution after a single token, or what counts as one."""
    return isinstance(answer, NextTokens) and len(answer.ids) == 1
