"""Members whose distributions are a pure function of the tokens they hold, so that a stale cache shows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

import numpy as np

from fusion.core import Advance, AdvanceFailed, Answer, Capacity, Down, Look, Looked, Member, NextTokens, Up

Distribution = Callable[[list[int]], np.ndarray]  # tokens -> log-probabilities [V]


def seeded(vocabulary_size: int, seed: int, sharpness: float = 3.0) -> Distribution:
    """A random but fixed distribution for every token list."""

    def distribution(tokens: list[int]) -> np.ndarray:
        rng = np.random.default_rng([seed, *tokens])
        logits = rng.normal(size=vocabulary_size) * sharpness
        return (logits - np.log(np.exp(logits).sum())).astype(np.float32)

    return distribution


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Ids of the k highest, best first, the lower id first among equals."""
    among = np.flatnonzero(scores >= np.partition(scores, len(scores) - k)[len(scores) - k])
    return among[np.argsort(-scores[among], kind="stable")[:k]].astype(np.int32)


class ToyMember:
    """Answers on the caller's thread; `hold` keeps the answers back until `release`."""

    def __init__(
        self, name: str, distribution: Distribution, vocabulary_size: int, capacity: Capacity, k: int = 320
    ) -> None:
        self.name = name
        self.vocabulary_size = vocabulary_size
        self.capacity = capacity
        self.step_seconds = 0.0
        self.distribution = distribution
        self.k = min(k, vocabulary_size)
        self.cached: dict[int, list[int]] = {}
        self.kept: dict[int, list[np.ndarray]] = {}
        self.submitted: list[list[Advance]] = []
        self.most_tokens = 0
        self.fail_on: Callable[[list[int]], bool] = lambda tokens: False
        self.hold = False
        self._held: list[Answer] = []
        self._lock = threading.Lock()
        self._deliver: Callable[[Member, list[Answer]], None] | None = None
        self.stopped = False
        self.down = False

    def start(self, deliver: Callable[[Member, list[Answer]], None]) -> None:
        self._deliver = deliver

    def trouble(self) -> None:
        return None

    def submit(self, advances: list[Advance]) -> None:
        with self._lock:
            if self.down:
                return
            self.submitted.append(advances)
            answers = [self._answer(advance) for advance in advances]
            self._held.extend(answers)
        if not self.hold:
            self.release()

    def _answer(self, advance: Advance | Look) -> Answer:
        if isinstance(advance, Look):
            return Looked(advance.sequence, self.kept[advance.sequence][advance.row][list(advance.ids)])
        tokens = self.cached.get(advance.sequence, [])
        assert advance.append, "an advance appends at least one token"
        assert 0 <= advance.keep <= len(tokens), "only what is cached can be kept"
        tokens = tokens[: advance.keep] + list(advance.append)
        assert len(tokens) <= self.capacity.context, "a sequence must fit the context"
        self.cached[advance.sequence] = tokens
        assert len(self.cached) <= self.capacity.sequences
        total = sum(map(len, self.cached.values()))
        assert total <= self.capacity.cache_tokens, "the cache must not be overcommitted"
        self.most_tokens = max(self.most_tokens, total)
        if self.fail_on(tokens):
            del self.cached[advance.sequence]
            return AdvanceFailed(advance.sequence, "out of luck.")
        ends = [advance.keep + index + 1 for index in advance.scored]
        rows = {end: self.distribution(tokens[:end]) for end in (*ends, len(tokens))}
        listed = [*(ends if advance.score == "all" else ()), len(tokens)]
        shown = dict(rows)
        if advance.allowed is not None:
            masks = np.atleast_2d(advance.allowed)
            for end, mask in zip(listed[-len(masks) :], masks, strict=True):
                admitted = np.unpackbits(mask, bitorder="little", count=self.vocabulary_size).view(np.bool_)
                shown[end] = np.where(admitted, rows[end], -np.inf).astype(np.float32)
        ids = np.stack([_best(shown[end], self.k) for end in listed])
        logprobs = np.stack([shown[end][best] for end, best in zip(listed, ids, strict=True)])
        if advance.kept:
            self.kept[advance.sequence] = [rows[end] for end in listed]
        named = rows[len(tokens)][None, list(advance.also)] if advance.also else None
        given = np.array([rows[end][tokens[end]] for end in ends], dtype=np.float32)
        each = None
        if advance.each is not None:
            each = np.stack([rows[end][wanted] for end, wanted in zip(ends, advance.each, strict=True)])
        given_all = None if advance.score == "last" else given
        return NextTokens(advance.sequence, ids, logprobs, given_all, named, each)

    def release(self) -> None:
        with self._lock:
            held, self._held = self._held, []
        if held and self._deliver is not None:
            self._deliver(self, held)

    def close(self, sequences: Collection[int]) -> None:
        with self._lock:
            for number in sequences:
                self.cached.pop(number, None)

    def fail(self, reason: str = "its engine is gone", retry_after: float = 2.5) -> None:
        """Lose everything and say so."""
        with self._lock:
            self.down = True
            self.cached.clear()
            self._held.clear()
        self._deliver(self, Down(reason, retry_after))

    def come_back(self) -> None:
        """Take work again."""
        self.down = False
        self._deliver(self, Up())

    def stop(self) -> None:
        self.stopped = True
