"""Record of a request, from which its metrics, its log line and its trace are made when it is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import nan
from time import perf_counter
from typing import Literal

from fusion.core import Delta, End, FinishReason
from fusion.reports import Account

Outcome = Literal["stop", "length", "error", "cancelled"]

SHOWN_SEQUENCES = 16  # of one request, in its log line and its trace; a completion may have a thousand

# Called for tokens as they come: the served name, how many, seconds since the sequence's last ones (NaN for its
# first), and seconds since the request came if these are its very first, else None.
OnTokens = Callable[[str, int, float, float | None], None]


@dataclass(slots=True)
class Recorded:
    """One of a request's sequences, seen from where its tokens arrive. Times are `perf_counter`'s.

    `number` is its name in the fuser's log.
    """

    number: int = 0
    tokens: int = 0
    first: float = 0.0
    latest: float = 0.0
    finish: FinishReason | None = None
    account: Account | None = None


@dataclass(slots=True)
class Record:
    """One HTTP request.

    Attributes:
        on_tokens: called for tokens as they come, on the fuser's thread.
        id: its `x-request-id`.
        method: of HTTP.
        client: the address it came from.
        traceparent, tracestate: the trace that it belongs to, as its headers say.
        path: of the route that answered; None where there was none.
        status: of the answer; None where the client had gone.
        key: the digest of the bearer key it came with.
        model: the served name that generated; None where nothing was generated.
        prompt_tokens: of all prompts, in the pivot's tokens.
        sequences: what was generated.
        first_token: when the first token of any sequence came.
        draining: whether it came while the server was going down, and was sent to another.
        error: why it failed, once there was a generation.
        cancelled: whether the generation was cut off because its client had gone.
        arrived, ended: when it came and when its answer was complete.
        wall_time: what `arrived` is on the wall, in nanoseconds since 1970.
    """

    on_tokens: OnTokens
    id: str
    method: str
    client: str = ""
    traceparent: str | None = None
    tracestate: str | None = None
    path: str | None = None
    status: int | None = None
    key: str | None = None
    model: str | None = None
    prompt_tokens: int = 0
    sequences: list[Recorded] = field(default_factory=list)
    first_token: float | None = None
    draining: bool = False
    error: Exception | None = None
    cancelled: bool = False
    arrived: float = field(default_factory=perf_counter)
    ended: float = 0.0
    wall_time: int = field(default_factory=time.time_ns)

    def begin(self, model: str, prompt_tokens: int, sequences: int) -> None:
        """Note that generation begins."""
        self.model = model
        self.prompt_tokens = prompt_tokens
        self.sequences = [Recorded() for _ in range(sequences)]

    def refused(self) -> None:
        """The generation was refused, though some of its sequences may have begun."""
        self.model = None

    def update(self, index: int, update: Delta) -> None:
        """Add an update of a sequence. Called on the fuser's thread, for every token."""
        sequence = self.sequences[index]
        count, model = len(update.tokens), self.model
        if count and model is not None:
            now = perf_counter()
            since = now - sequence.latest if sequence.tokens else nan
            waited = now - self.arrived if self.first_token is None else None
            self.on_tokens(model, count, since, waited)
            self.first_token = self.first_token or now
            sequence.first = sequence.first or now
            sequence.latest = now
            sequence.tokens += count
        if isinstance(update, End):
            sequence.finish = update.finish
            sequence.account = update.account
            self.error = self.error or update.error

    @property
    def generated_tokens(self) -> int:
        """The number of generated tokens over all sequences."""
        return sum(sequence.tokens for sequence in self.sequences)

    @property
    def outcome(self) -> Outcome:
        """The end of the generation; of several sequences the worst counts."""
        if self.error is not None:
            return "error"
        if self.cancelled:
            return "cancelled"
        return "length" if any(sequence.finish == "length" for sequence in self.sequences) else "stop"
