"""An engine whose step takes a fixed time and no processor: the rest of a round's time is the server's own."""

from __future__ import annotations

import time
from collections.abc import Collection

import numpy as np

from fusion.core import Advance, Answer, Capacity, NextTokens

ROWS = 64


class SleepingEngine:
    """Every step ends `seconds` after it began and answers everything queued, from a table of distributions."""

    broken: str | None = None

    def __init__(self, seconds: float, vocabulary_size: int, seed: int, k: int = 320) -> None:
        self.capacity = Capacity(4096, 1_000_000, 256)
        self.vocabulary_size = vocabulary_size
        self.device = f"sleep:{seed}"  # one of its own, so that inline engines too could sleep side by side
        self.seconds = seconds
        rng = np.random.default_rng(seed)
        self.ids = np.stack([rng.permutation(vocabulary_size)[:k] for _ in range(ROWS)]).astype(np.int32)
        logits = np.sort(rng.normal(size=(ROWS, k)) * 3)[:, ::-1]
        self.logprobs = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
        self.work: list[Advance] = []

    def add(self, advances: list[Advance]) -> None:
        self.work += advances

    def close(self, sequences: Collection[int]) -> None:
        self.work = [advance for advance in self.work if advance.sequence not in sequences]

    def has_work(self) -> bool:
        return bool(self.work)

    def step(self) -> list[Answer]:
        ends = time.perf_counter() + self.seconds
        work, self.work = self.work, []
        answers: list[Answer] = []
        for advance in work:
            row = (advance.append[-1] + advance.keep) % ROWS
            answers.append(NextTokens(advance.sequence, self.ids[row, None], self.logprobs[row, None]))
        time.sleep(max(0.0, ends - time.perf_counter()))
        return answers

    def shutdown(self) -> None:
        self.work.clear()
