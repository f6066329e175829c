"""A member in a process of its own: its numbers come through the server, which goes on when that process ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.scraped_server import Live, serving
from tests.support.scripted_fuser import eventually
from tests.support.worker_processes import workers

ASK = {"model": "both", "max_tokens": 10, "ignore_eos": True, "messages": [{"role": "user", "content": "the and"}]}


@pytest.fixture
def hosted(broken: Path) -> Iterator[Live]:
    config = broken / "tutti.yaml"
    text = config.read_text()
    text = text.replace("dtype: float32}", "dtype: float32, host: process}")
    config.write_text(text.replace("filter_top: 5}", "filter_top: 5, on_member_failure: degrade}"))
    with serving(config) as live:
        yield live


def worker() -> psutil.Process:
    [process] = workers()
    return process


def test_a_lost_process_is_seen_and_scrapes_go_on(hosted: Live) -> None:
    def ask() -> None:
        httpx.post(f"{hosted.url}/v1/chat/completions", json=ASK, timeout=60).raise_for_status()

    change = hosted.change(ask)
    for member in ("ada", "ben"):
        assert change("member_step_seconds_count", member=member) >= 5
        assert change("member_answer_seconds_count", member=member, phase="prefill") == 1
    stepping = change("member_step_seconds_sum", member="ben")
    answering = change("member_answer_seconds_sum", member="ben")
    assert 0 < stepping < answering, "what an answer takes is its step and the way there and back"
    assert httpx.get(f"{hosted.url}/ready").status_code == 200

    os.kill(worker().pid, signal.SIGKILL)
    assert eventually(lambda: hosted.scrape().value("member_up", member="ben") == 0)
    ready = httpx.get(f"{hosted.url}/ready")
    assert (ready.status_code, ready.json()) == (200, {"status": "degraded", "down": ["ben"]})
    assert httpx.get(f"{hosted.url}/health").status_code == 200
    change = hosted.change(ask)
    assert change("degraded_requests_total", model="both", reason="lost") == 1
    assert change("generation_tokens_total", model="both") == 10

    assert eventually(lambda: hosted.scrape().value("member_up", member="ben") == 1, seconds=60)
    assert hosted.scrape().value("member_restarts_total", member="ben") == 1
    assert httpx.get(f"{hosted.url}/ready").status_code == 200
    assert hosted.change(ask)("degraded_requests_total") == 0
