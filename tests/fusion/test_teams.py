"""Teams of OpenMP threads: a thread that has computed can give its own up, and those who only load do."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

import pytest
import torch

from fusion.members.transformers import engine
from fusion.teams import release_team
from tests.support.random_models import build

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts the threads of /proc")
THREADS = 2


def kept(work: Callable[[], object]) -> int:
    """How many threads of the system's `work` leaves behind with the thread that did it."""
    counts: list[int] = []

    def run() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(THREADS)
        try:
            count()
        finally:
            torch.set_num_threads(threads)

    def count() -> None:
        before = set(os.listdir("/proc/self/task"))  # threads of others may end meanwhile
        work()
        until = time.monotonic() + 1
        while (new := set(os.listdir("/proc/self/task")) - before) and time.monotonic() < until:
            time.sleep(0.05)
        counts.append(len(new))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return counts[0]


def multiply() -> torch.Tensor:
    x = torch.ones(700, 700)
    return x @ x


def test_a_thread_that_has_computed_keeps_a_team_until_it_is_released() -> None:
    assert kept(multiply) == THREADS - 1
    assert kept(lambda: (multiply(), release_team())) == 0


def test_a_released_thread_computes_on() -> None:
    def work() -> None:
        multiply()
        release_team()
        assert multiply()[0, 0] == 700

    assert kept(work) == THREADS - 1


def test_loading_an_engine_leaves_no_team(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(*_: object, **__: object) -> torch.nn.Module:
        multiply()  # as reading and packing large weights does
        return build("llama")

    monkeypatch.setattr(engine, "load_model", load_model)
    assert kept(lambda: engine.TransformersEngine.load("folder", cache_tokens=256, max_sequences=2)) == 0
