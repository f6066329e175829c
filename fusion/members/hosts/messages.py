"""Messages between a member and the worker that runs its engine.

member                          worker
Load                      ->
                          <-    Loaded or Broken
[Advance, Look, Generate] ->
                          <-    Answers
Close                     ->
Ping                      ->
                          <-    Pong
                          <-    Logged, at any time
                          <-    Broken, when the engine will not work again
Stop                      ->    ends
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from fusion.core import Answer, Capacity, Task
from fusion.options import SamplingParams


@dataclass(frozen=True, slots=True)
class Load:
    """The first message: what to load (an `EngineSpec`), for which member, and the level of its log.

    A step that takes longer than `longest_step` seconds counts as hung. `dialect` is `codec.dialect()`.
    """

    dialect: str
    member: str
    longest_step: float
    log_level: int
    engine: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The engine is ready for work."""

    capacity: Capacity
    vocabulary_size: int


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of one step, and the seconds that it took."""

    answers: list[Answer]
    step_seconds: float


@dataclass(frozen=True, slots=True)
class Broken:
    """The engine cannot be loaded, or will not work again; `reason` is (part of) a sentence without full stop."""

    reason: str


@dataclass(frozen=True, slots=True)
class Logged:
    """A line for the server's log, so that there is one log in one format."""

    level: int
    logger: str
    message: str


@dataclass(frozen=True, slots=True)
class Close:
    """Free the caches of these sequences."""

    sequences: list[int]


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a sign of life."""


@dataclass(frozen=True, slots=True)
class Pong:
    """A sign of life."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Finish the step in progress, free all resources, end."""


WIRE: tuple[type, ...] = (
    *(*get_args(Task), *get_args(Answer), SamplingParams, Capacity),
    *(Load, Loaded, Answers, Broken, Logged, Close, Ping, Pong, Stop),
)
"""All that may cross: no other class is sent, and none is made of what is received."""
