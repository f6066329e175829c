"""SIGTERM: whoever is served is served to the end, whoever comes is sent elsewhere, and the process ends."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.demo import CONFIG, ENSEMBLE, user
from tests.support.forks import Fork
from tests.support.scripted_fuser import eventually

LONG = {"model": ENSEMBLE, "messages": user("Anna has 12 apples."), "stream": True, "ignore_eos": True}
Start = Callable[..., tuple[Fork, httpx.Client]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    processes: list[Fork] = []
    clients: list[httpx.Client] = []

    def run(**server: object) -> tuple[Fork, httpx.Client]:
        environ = os.environ | {f"TUTTI_SERVER__{name.upper()}": str(value) for name, value in server.items()}
        log = tmp_path / "stderr.log"
        process = Fork("-m", "server", "serve", CONFIG, "--port", "0", environment=environ, errors=log)
        processes.append(process)
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1].removesuffix("/v1")
        clients.append(httpx.Client(base_url=url, timeout=60))
        return process, clients[-1]

    yield run
    for client in clients:
        client.close()
    for process in processes:
        with process:
            pass


@contextmanager
def streaming(http: httpx.Client, **fields: object) -> Iterator[Iterator[str]]:
    """The lines of an answer that has begun."""
    with http.stream("POST", "/v1/chat/completions", json={**LONG, **fields}) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        next(lines)
        yield lines


def test_running_requests_finish_and_new_ones_are_sent_elsewhere(start: Start) -> None:
    process, http = start(shutdown_seconds=120)
    assert http.get("/ready").status_code == 200
    with streaming(http, max_tokens=600, seed=1) as lines:
        process.send_signal(signal.SIGTERM)
        assert eventually(lambda: http.get("/ready").status_code == 503)
        assert http.get("/health").status_code == 200
        assert "tutti_sequences_running" in http.get("/metrics").text
        refused = http.post("/v1/chat/completions", json={**LONG, "max_tokens": 1})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "shutting down" in refused.json()["error"]["message"]
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert sum(len(event["choices"][0]["delta"].get("content") or "") for event in events) > 600
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert process.wait(timeout=60) == 0


def test_the_time_to_finish_is_bounded_and_what_is_unfinished_ends_with_an_error(start: Start) -> None:
    process, http = start(shutdown_seconds=1)
    whole = {**LONG, "max_tokens": 1000, "n": 8, "stream": False}
    with ThreadPoolExecutor(1) as pool, streaming(http, max_tokens=1000, n=8) as lines:
        asked = pool.submit(http.post, "/v1/chat/completions", json=whole)
        assert eventually(lambda: http.get("/load").json()["server_load"] > 8)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        *_, event, done = filter(None, lines)
        assert "shutting down" in json.loads(event.removeprefix("data: "))["error"]["message"]
        assert done == "data: [DONE]"
        answer = asked.result()
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "shutting down" in answer.json()["error"]["message"]
        assert process.wait(timeout=60) == 0
        assert 1 <= time.monotonic() - began < 30
