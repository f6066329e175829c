"""Engines without torch that a worker can load by name: they start at once and compute plain sums."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

import numpy as np

from alignment.errors import ConfigError
from fusion.core import Advance, AdvanceFailed, Answer, Capacity, NextTokens
from fusion.members.registry import EngineSpec

HERE = "tests.support.worker_engines"


class SumEngine:
    """Answers every advance with a distribution that is a function of the tokens held; a step takes `seconds`.

    Token ids from 1,000,000 on are orders: `LEAVE` kills the worker, `FREEZE` suspends it, `FAIL` is one
    step that fails, `BREAK` the last that does not.
    """

    LEAVE, FREEZE, FAIL, BREAK = range(1_000_000, 1_000_004)
    broken: str | None = None

    def __init__(self, seconds: float = 0.0, vocabulary: int = 32, context: int = 100_000, k: int = 8) -> None:
        self.capacity = Capacity(context, 1_000_000, 64)
        self.vocabulary_size = vocabulary
        self.device = "cpu"
        self.seconds = seconds
        self.k = k
        self.cached: dict[int, list[int]] = {}
        self.work: list[Advance] = []

    def add(self, advances: list[Advance]) -> None:
        self.work += advances

    def close(self, sequences: Collection[int]) -> None:
        for sequence in sequences:
            self.cached.pop(sequence, None)
        self.work = [advance for advance in self.work if advance.sequence not in sequences]

    def has_work(self) -> bool:
        return bool(self.work)

    def step(self) -> list[Answer]:
        work, self.work = self.work, []
        if self.seconds:
            time.sleep(self.seconds)
        return [self.answer(advance) for advance in work]

    def answer(self, advance: Advance) -> Answer:
        held = self.cached.get(advance.sequence, [])
        if advance.keep > len(held):
            return AdvanceFailed(advance.sequence, f"Cannot keep {advance.keep} tokens: {len(held)} are cached.")
        held = self.cached[advance.sequence] = held[: advance.keep] + list(advance.append)
        if self.LEAVE in held:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.FREEZE in held:
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.BREAK in held:
            self.broken = "it lost a wheel"
        if self.FAIL in held:
            raise RuntimeError("no such luck")
        scored = [advance.keep + index + 1 for index in advance.scored]
        ends = [*(scored if advance.score == "all" else ()), len(held)]
        ids, logprobs = zip(*(expected(held[:end], self.vocabulary_size, self.k) for end in ends), strict=True)
        appended = None if advance.score == "last" else np.zeros(len(scored), np.float32)
        return NextTokens(advance.sequence, np.stack(ids), np.stack(logprobs), appended)

    def shutdown(self) -> None:
        self.cached.clear()


def expected(held: list[int], vocabulary: int = 32, k: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """What `SumEngine` answers when it holds these tokens: ids [k] and logprobs [k]."""
    logits = np.random.default_rng([sum(held), len(held)]).normal(size=vocabulary) * 3
    logprobs = (logits - np.log(np.exp(logits).sum())).astype(np.float32)
    ids = np.argsort(-logprobs, kind="stable")[:k].astype(np.int32)
    return ids, logprobs[ids]


def sums(**arguments) -> EngineSpec:
    """A `SumEngine`."""
    return EngineSpec(f"{HERE}:SumEngine", arguments)


def refuse(sentence: str) -> SumEngine:
    raise ConfigError(sentence)


def break_down() -> SumEngine:
    raise ZeroDivisionError("by\nzero")


def vanish() -> SumEngine:
    os._exit(3)


def once(note: str) -> SumEngine:
    """Loads the first time; while the file `note` is there, ends with exit code 4."""
    if Path(note).exists():
        os._exit(4)
    Path(note).touch()
    return SumEngine()


def stuck(note: str) -> SumEngine:
    """Loads the first time; while the file `note` is there, never."""
    if Path(note).exists():
        time.sleep(3600)
    Path(note).touch()
    return SumEngine()


def report(path: str) -> SumEngine:
    """Writes down the environment and the process's number, then loads."""
    lines = [f"{name}={value}" for name, value in os.environ.items()]
    Path(path).write_text("\n".join([f"pid={os.getpid()}", *lines]))
    print("said by the engine", flush=True)
    return SumEngine()


def linger(path: str, seconds: float = 600.0) -> SumEngine:
    """Takes long to load."""
    Path(path).write_text(str(os.getpid()))
    time.sleep(seconds)
    return SumEngine()
