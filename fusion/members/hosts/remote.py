"""Members whose engine runs elsewhere: in a process of its own, or on another machine.

Each has one thread, which starts the worker, receives its messages, notices when it is gone, and starts another
one. Work from the fuser goes straight to the socket on the fuser's thread.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Protocol

from annotated_types import Gt

from alignment.errors import ConfigError, one_line
from fusion.core import Capacity, Deliver, Delivery, Down, Task, Trouble, Up
from fusion.members.hosts.channel import Channel
from fusion.members.hosts.codec import dialect
from fusion.members.hosts.inline import LONGEST_STEP
from fusion.members.hosts.messages import Answers, Broken, Close, Load, Loaded, Logged, Ping, Stop
from fusion.members.registry import EngineSpec

log = logging.getLogger(__name__)

TICK = 0.25  # seconds between looks at a worker that says nothing
GRACE = 10.0  # seconds for a worker to end after `Stop`

Seconds = Annotated[float, Gt(0)]


class Worker(Protocol):
    """A process or actor that runs an engine. `what` names its kind in a sentence."""

    what: str
    channel: Channel

    def ended(self) -> str | None:
        """Return how it ended, as the rest of a sentence; None while it lives."""

    def end(self, seconds: float) -> str:
        """Wait `seconds` for it to end by itself, then end it; return how it ended. Closes the channel."""


# Starts a worker. Given a function that says whether it is still wanted; raises ConfigError where it cannot.
Launch = Callable[[Callable[[], bool]], Worker]


@dataclass(frozen=True, slots=True)
class Patience:
    """Time limits for a worker that fails.

    Attributes:
        silence_seconds: a worker that sends nothing for this long has hung, and is replaced.
        step_seconds: an engine whose step takes this long has hung too.
        load_seconds: so has a worker that has not loaded by then, where one had before: the first may have to
            download.
        restart_seconds: pause before the first attempt to start another worker; doubles with each failed attempt.
        longest_restart_seconds: the longest pause between two attempts. A worker that lives longer resets the
            pause.
    """

    silence_seconds: Seconds = 10.0
    step_seconds: Seconds = LONGEST_STEP
    load_seconds: Seconds = 3600.0
    restart_seconds: Seconds = 1.0
    longest_restart_seconds: Seconds = 60.0


class RemoteMember:
    """An engine in a worker as a `fusion.core.Member`. Loading begins at once: `wait` for it before all else."""

    vocabulary_size: int
    capacity: Capacity

    def __init__(self, name: str, spec: EngineSpec, launch: Launch, patience: Patience | None = None) -> None:
        self.name = name
        self._spec = spec
        self._launch = launch
        self._patience = patience or Patience()
        self._lock = threading.Lock()
        self._channel: Channel | None = None  # while there is a worker with an engine
        self._deliver: Deliver | None = None
        self._down: Down | None = None
        self._refusal: str | None = None
        self._loaded_at, self._load_seconds = math.inf, 0.0
        self._step_seconds = 0.0
        self._settled = threading.Event()  # whether the first worker could load is known
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"tutti-{name}", daemon=True)
        self._thread.start()

    # -- for callers, from any thread

    @property
    def step_seconds(self) -> float:
        """Seconds that the step took whose answers are being delivered."""
        return self._step_seconds

    def trouble(self) -> Trouble | None:
        """Return None: a worker that hangs or fails is ended, and `Down` says so."""
        return None

    def wait(self, seconds: float | None = None) -> bool:
        """Return whether the engine is loaded, after waiting for it at most `seconds`; None waits without a limit.

        Raises:
            ConfigError: the engine cannot be loaded.
        """
        settled = self._settled.wait(seconds)
        if self._refusal is not None:
            raise ConfigError(self._refusal)
        return settled

    def start(self, deliver: Deliver) -> None:
        """Begin to accept work; `deliver` is called on the thread that listens to the worker."""
        with self._lock:
            self._deliver = deliver
            if self._down is not None:
                deliver(self, self._down)

    def submit(self, work: list[Task]) -> None:
        """Send work; without a worker it is dropped, as `Down` has reported or is about to report."""
        channel = self._channel
        if channel is not None:
            channel.send(work)

    def close(self, sequences: Collection[int]) -> None:
        """Free the caches of these sequences and forget their queued work; unknown ids are ignored."""
        channel = self._channel
        if channel is not None:
            channel.send(Close(list(sequences)))

    def stop(self) -> None:
        """Let the worker finish the step in progress and end; one that is still loading is ended at once."""
        self._stopping.set()
        channel = self._channel
        if channel is not None:
            channel.wake()
        self._thread.join()

    # -- the thread

    def _run(self) -> None:
        delay = self._patience.restart_seconds
        while True:
            reason = self._one_life()
            if not self._settled.is_set():
                self._refusal = f"{reason}."
                self._settled.set()
                return
            if self._stopping.is_set():
                return
            if time.monotonic() - self._loaded_at > self._patience.longest_restart_seconds:
                delay = self._patience.restart_seconds
            log.error("member %s: %s; restarting in %g s", self.name, reason, delay)
            self._tell(Down(reason, delay + self._load_seconds))
            if self._stopping.wait(delay):
                return
            delay = min(2 * delay, self._patience.longest_restart_seconds)

    def _one_life(self) -> str:
        """Start a worker and attend to it until it is gone; return the reason, as a part of a sentence."""
        began, self._loaded_at = time.monotonic(), math.inf
        reason, how = None, ""
        try:
            worker = self._launch(lambda: not self._stopping.is_set())
            try:
                spec = self._spec
                level, longest = log.getEffectiveLevel(), self._patience.step_seconds
                worker.channel.send(Load(dialect(), self.name, longest, level, spec.engine, dict(spec.arguments)))
                reason = self._attend(worker, began)
            finally:
                self._channel = None
                # One that is gone needs a moment to be seen so; one that has hung, or is not wanted, gets none.
                how = worker.end(1.0 if reason is None else 0.0)
        except ConfigError as error:
            return str(error).rstrip(".")
        except Exception as error:
            log.exception("member %s cannot go on with its worker", self.name)
            return f"its worker cannot be used: {type(error).__name__}: {one_line(error)}"
        unready = "" if self._loaded_at < math.inf else " before it was ready; see what it printed"
        return reason or f"its {worker.what} {how}{unready}"

    def _attend(self, worker: Worker, began: float) -> str | None:
        """Receive the worker's messages; return the reason to end it, or None when it is gone."""
        channel, quiet, told_at = worker.channel, 0.0, math.inf
        while True:
            before = time.monotonic()
            try:
                messages = channel.receive(TICK)
            except EOFError:
                return None
            now = time.monotonic()
            for message in messages:
                match message:
                    case Answers():
                        self._step_seconds = message.step_seconds
                        self._tell(message.answers)
                    case Logged():
                        logging.getLogger(message.logger).log(message.level, "[%s] %s", self.name, message.message)
                    case Loaded():
                        if (reason := self._loaded(message, channel, now - began)) is not None:
                            return reason
                    case Broken():
                        return message.reason
            if self._stopping.is_set():
                if self._channel is None or now > told_at + GRACE:
                    return "it was told to stop"
                if told_at == math.inf:
                    channel.send(Stop())
                    told_at = now
            elif self._channel is None and self._settled.is_set() and now - began > self._patience.load_seconds:
                return f"its {worker.what} hung: it did not load within {self._patience.load_seconds:g} seconds"
            elif channel.heard:  # of a large message the parts count, since no answer to `Ping` overtakes it
                quiet = 0.0
            elif self._channel is not None:
                # Time in which this process was suspended itself does not count as the worker's silence.
                quiet += min(now - before, 2 * TICK)
                channel.send(Ping())
                if quiet > self._patience.silence_seconds:
                    return (
                        f"its {worker.what} hung: it said nothing for {self._patience.silence_seconds:g} seconds"
                    )
            if not channel.heard and worker.ended() is not None:
                return None

    def _loaded(self, message: Loaded, channel: Channel, seconds: float) -> str | None:
        """Begin to accept work; return the reason where the loaded engine is unusable, else None."""
        again = self._settled.is_set()
        if again and message.vocabulary_size != self.vocabulary_size:
            return f"its vocabulary came back as {message.vocabulary_size} tokens, not {self.vocabulary_size}"
        self.vocabulary_size, self.capacity = message.vocabulary_size, message.capacity
        self._loaded_at, self._load_seconds = time.monotonic(), seconds
        self._channel = channel
        if again:
            log.info("member %s is back after %.1f s", self.name, seconds)
            self._tell(Up())
        self._settled.set()
        return None

    def _tell(self, what: Delivery) -> None:
        with self._lock:
            if not isinstance(what, list):
                self._down = what if isinstance(what, Down) else None
            if self._deliver is not None:
                self._deliver(self, what)
