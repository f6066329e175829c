"""A real server of two tiny models in a thread, and the samples that a scrape of it holds."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from server.http.app import create_app
from server.loading import build
from server.settings import ServerSettings, read_settings
from tests.support.scripted_fuser import eventually


class Scrape(dict[tuple[str, frozenset[tuple[str, str]]], float]):
    """All samples of a scrape by name and labels."""

    def __init__(self, text: str) -> None:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in self, "a sample is told once"
                self[key] = sample.value

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels."""
        matching = [v for (n, found), v in self.items() if n == f"tutti_{name}" and labels.items() <= set(found)]
        return sum(matching)

    def label_values(self, label: str) -> set[str]:
        return {value for name, labels in self for key, value in labels if key == label and name[:6] == "tutti_"}


@dataclass
class Live:
    """A real server with two tiny models."""

    url: str

    def sdk(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0)

    def scrape(self, accept: str = "") -> Scrape:
        return Scrape(httpx.get(f"{self.url}/metrics", headers={"accept": accept}).raise_for_status().text)

    def change(self, work: Callable[[], Any]) -> Callable[..., float]:
        """Do the work; returns how much samples changed meanwhile."""
        before = self._settled()
        work()
        after = self._settled()
        return lambda name, **labels: after.value(name, **labels) - before.value(name, **labels)

    def _settled(self) -> Scrape:
        """What a server tells that is done: callers have their last token before it is counted."""
        latest = self.scrape()

        def done() -> bool:
            nonlocal latest
            before = latest
            time.sleep(0.1)
            latest = self.scrape()
            same = all(before.get(key) == value for key, value in latest.items() if key[0][:6] == "tutti_")
            return same and latest.value("sequences_running") == 0

        assert eventually(done)
        return latest


@contextmanager
def serving(path: Path) -> Iterator[Live]:
    """A server of what the configuration says."""
    runtime = build(read_settings(path))
    app = create_app(runtime.ensembles, runtime.fuser, ServerSettings())
    config = uvicorn.Config(app, log_config=None, log_level="warning", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield Live(f"http://127.0.0.1:{listener.getsockname()[1]}")
    server.should_exit = True
    thread.join(timeout=30)
