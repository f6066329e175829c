"""Members inside the server's process: engines stepped by one thread per device.

Two models' forward passes at once on one CPU compete for its cores, and on one GPU for its kernels. One after the
other, each runs at full speed, and work for the others gathers into larger batches meanwhile.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter

from alignment.errors import one_line
from fusion.core import AdvanceFailed, Answer, Capacity, Deliver, Delivery, Down, Generated, Task, Trouble
from fusion.members.engine import Engine

log = logging.getLogger(__name__)

WAIT_SHARE = 0.25  # how long an engine waits for company, as a share of the step before
LONGEST_STEP = 300.0  # seconds of a step, after which an engine has hung
FAILED_STEPS_LIMIT = 3  # steps that fail one after the other, after which an engine is given up


class InlineMember:
    """An engine of this process as a `fusion.core.Member`."""

    def __init__(self, name: str, engine: Engine) -> None:
        self.name = name
        self.vocabulary_size = engine.vocabulary_size
        self.capacity: Capacity = engine.capacity
        self._engine = engine
        self._place: _Place | None = None
        self._stopped = False

    def start(self, deliver: Deliver) -> None:
        """Begin to accept work; `deliver` is called on the thread of the engine's device."""
        self._place = _Place(self._engine, lambda what: deliver(self, what))
        _join(self._engine.device, self._place)

    @property
    def step_seconds(self) -> float:
        """Seconds that the engine's last step took."""
        return self._place.step_seconds if self._place else 0.0

    def trouble(self, longest_step: float = LONGEST_STEP) -> Trouble | None:
        """Return the reason to restart the engine, or None.

        A step that takes longer than `longest_step` seconds counts as hung.
        """
        place = self._place
        if place is None:
            return None
        if reason := self._engine.broken or place.lost:
            return Trouble(reason, lasting=True)
        if place.failures >= FAILED_STEPS_LIMIT:
            reason = f"its engine failed {place.failures} times in a row, last with {place.failure}"
            return Trouble(reason, lasting=False)
        begun = place.begun
        if begun is not None and perf_counter() - begun > longest_step:
            return Trouble(f"its engine hung: a step took longer than {longest_step:g} seconds", lasting=True)
        return None

    def submit(self, work: list[Task]) -> None:
        """Queue work; tasks submitted together can share a forward pass."""
        assert self._place is not None, "start the member first"
        self._place.post(work)

    def close(self, sequences: Collection[int]) -> None:
        """Free these sequences before the next forward pass; results of the present one for them are dropped."""
        assert self._place is not None, "start the member first"
        self._place.post(set(sequences))

    def stop(self) -> None:
        """Finish the step in progress and give back thread and memory. Not to be called from `deliver`."""
        if self._stopped:
            return
        self._stopped = True
        if self._place is not None:
            _leave(self._engine.device, self._place)
        self._engine.shutdown()


@dataclass(eq=False, slots=True)
class _Place:
    """One engine's place at its device's thread.

    `inbox` holds what callers have posted since the last step, in order: lists of work, sets of sequences
    to close. It is guarded by `wake`, the thread's condition; all else belongs to the thread.
    """

    engine: Engine
    deliver: Callable[[Delivery], None]
    wake: threading.Condition = field(default_factory=threading.Condition)
    inbox: list[list[Task] | set[int]] = field(default_factory=list)
    outstanding: set[int] = field(default_factory=set)
    step_seconds: float = 0.0
    begun: float | None = None  # when the step in progress began
    failures: int = 0  # steps in a row that failed,
    failure: str = ""  # the last one with this
    lost: str | None = None  # why the device will not compute for this process any more
    is_down: bool = False

    def post(self, item: list[Task] | set[int]) -> None:
        with self.wake:
            self.inbox.append(item)
            self.wake.notify()

    def has_work(self) -> bool:
        return bool(self.inbox) or self.engine.has_work()

    def posted(self) -> set[int]:
        """The sequences that something was posted for; to be called with `wake` held."""
        return {s if isinstance(s, int) else s.sequence for item in self.inbox for s in item}

    def turn(self) -> set[int]:
        """Take in what was posted, run one step, deliver its answers; returns the sequences answered."""
        with self.wake:
            posted, self.inbox = self.inbox, []
            # All of them before any is tried, so that a failure below is the answer to each.
            for item in posted:
                if isinstance(item, set):
                    self.outstanding -= item
                else:
                    self.outstanding.update(work.sequence for work in item)
        answers: list[Answer]
        self.begun = begun = perf_counter()
        try:
            for item in posted:
                if isinstance(item, set):
                    self.engine.close(item)
                else:
                    self.engine.add(item)
            answers = []
            if self.engine.has_work():
                answers = self.engine.step()
                self.failures = 0
            self.step_seconds = perf_counter() - begun
        except Exception as error:
            self.step_seconds = 0.0  # of no step that did anything
            log.exception("a step of an engine on %s failed", self.engine.device)
            self.failure = f"{type(error).__name__}: {one_line(error)}"
            self.failures += 1
            self.lost = self.lost or _lost(error, self.engine.device)
            reason = f"The engine failed: {self.failure}"
            answers = [AdvanceFailed(sequence, reason) for sequence in sorted(self.outstanding)]
            closed = {sequence for item in posted if isinstance(item, set) for sequence in item}
            with suppress(Exception):  # an engine that cannot even close must not end the thread of all others
                self.engine.close(self.outstanding | closed)
        self.begun = None
        self.outstanding.difference_update(answer.sequence for answer in answers if _is_last(answer))
        with self.wake:
            closed = {sequence for item in self.inbox if isinstance(item, set) for sequence in item}
        answers = [answer for answer in answers if answer.sequence not in closed]
        # Steps that fail are no proof: a request may make them fail. What the engine says of itself is.
        if self.failures and not self.is_down and (broken := self.engine.broken or self.lost):
            self.is_down = True
            self._tell(Down(broken, None))
        if answers:
            self._tell(answers)
        return {answer.sequence for answer in answers}

    def _tell(self, what: Delivery) -> None:
        try:
            self.deliver(what)
        except Exception:
            log.exception("the receiver of an engine's answers failed")


def _lost(error: Exception, device: str) -> str | None:
    """Return why a device is lost to this process, None where it is not.

    After an illegal address or a failed assertion on a GPU each later call fails, whatever it is for; a call that
    waits for the device tells such an error from one that has passed, such as of memory.
    """
    import torch

    if not isinstance(error, torch.AcceleratorError):
        return None
    try:
        torch.accelerator.synchronize(device)
    except torch.AcceleratorError as lasting:
        return f"its device is lost to this process: {one_line(lasting)}"
    return None


def _is_last(answer: Answer) -> bool:
    """Return whether this is the last answer to its task."""
    return not isinstance(answer, Generated) or answer.finished


class _DeviceThread:
    """Steps the engines of one device in turn, the one that has waited longest first."""

    def __init__(self, device: str) -> None:
        self.places: list[_Place] = []
        self.wake = threading.Condition()
        self._busy: _Place | None = None
        self._thread = threading.Thread(target=self._run, name=f"tutti-{device}", daemon=True)

    def join(self, place: _Place) -> None:
        place.wake = self.wake
        with self.wake:
            self.places.append(place)
            self.wake.notify()
        if not self._thread.is_alive():  # not before it has a place: without one it ends
            self._thread.start()

    def leave(self, place: _Place) -> None:
        """Give up a place, once its step in progress is over; the thread ends with its last place."""
        with self.wake:
            self.places.remove(place)
            last = not self.places
            self.wake.notify_all()
            self.wake.wait_for(lambda: self._busy is not place)
        if last:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self.wake:
                self._busy = None
                self.wake.notify_all()
                self.wake.wait_for(lambda: not self.places or any(place.has_work() for place in self.places))
                if not self.places:
                    return
                place = next(place for place in self.places if place.has_work())
                self.places.remove(place)
                self.places.append(place)
                self._busy = place
            begun = perf_counter()
            answered = place.turn()
            self._linger(answered, WAIT_SHARE * (perf_counter() - begun))

    def _linger(self, answered: set[int], seconds: float) -> None:
        """Wait a moment for sequences that are done with all engines here, so are with the fuser, to come back.

        Without the wait the next engine would start too early, without them, and they would stay one step behind
        the others for good, in two small batches in place of one.
        """
        with self.wake:
            pending = [place.outstanding | place.posted() for place in self.places]
            away = answered.difference(*pending)
            if away and any(pending):
                self.wake.wait_for(lambda: all(self._is_back(sequence) for sequence in away), seconds)

    def _is_back(self, sequence: int) -> bool:
        return any(sequence in place.posted() for place in self.places)


_threads: dict[str, _DeviceThread] = {}
_threads_lock = threading.Lock()


def _join(device: str, place: _Place) -> None:
    with _threads_lock:
        if device not in _threads:
            _threads[device] = _DeviceThread(device)
        _threads[device].join(place)


def _leave(device: str, place: _Place) -> None:
    with _threads_lock:
        thread = _threads[device]
        thread.leave(place)
        if not thread.places:
            del _threads[device]
