"""A real Prometheus beside the server: started, asked, stopped."""

from __future__ import annotations

import math
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support.demo import REPOSITORY

SHIPPED = REPOSITORY / "deploy" / "prometheus"


@dataclass(frozen=True)
class Series:
    """What came back for one set of labels: times and values."""

    labels: dict[str, str]
    points: list[tuple[float, float]]

    @property
    def known(self) -> bool:
        """Whether there is a number: a ratio of nothing to nothing is none."""
        return any(math.isfinite(value) for _, value in self.points)


@dataclass(frozen=True)
class Prometheus:
    """Its HTTP API."""

    url: str

    def get(self, path: str, **parameters: Any) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def value(self, expression: str) -> float:
        """The one number that an expression comes to now."""
        (sample,) = self.get("query", query=expression)["result"]
        return float(sample["value"][1])

    def histogram(self, buckets: str) -> list[int]:
        """The bucket that each observation of a histogram went to, as a number in the order of the buckets."""
        result = self.get("query", query=f"sum by (le) ({buckets})")["result"]
        below = sorted((float(sample["metric"]["le"]), float(sample["value"][1])) for sample in result)
        counts = [0, *(round(count) for _, count in below)]
        return [at for at, (low, high) in enumerate(pairwise(counts)) for _ in range(high - low)]

    def over_time(self, expression: str, start: float, end: float, step: float = 1) -> list[Series]:
        """The course of an expression, as a panel draws it."""
        result = self.get("query_range", query=expression, start=start, end=end, step=step)["result"]
        return [
            Series(series["metric"], [(float(at), float(value)) for at, value in series["values"]])
            for series in result
        ]

    def wait(self, expression: str, seconds: float = 30) -> None:
        """Until an expression has a sample."""
        deadline = time.monotonic() + seconds
        while not self.get("query", query=expression)["result"]:
            assert time.monotonic() < deadline, f"{expression} stayed without data"
            time.sleep(0.2)


def installed() -> bool:
    return shutil.which("prometheus") is not None


@contextmanager
def running(target: str, folder: Path, interval: str = "1s") -> Iterator[Prometheus]:
    """Prometheus with the configuration and the rules of deploy/, but another target and a shorter interval."""
    config = yaml.safe_load((SHIPPED / "prometheus.yaml").read_text())
    config["global"] |= {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval}
    config["rule_files"] = [str(SHIPPED / name) for name in config["rule_files"]]
    config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] == "tutti"]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{_free_port()}"
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    log = folder / "prometheus.log"
    with log.open("w") as stderr, subprocess.Popen(command, stdout=stderr, stderr=stderr) as process:
        try:
            deadline = time.monotonic() + 30
            while not _answers(f"http://{address}/-/ready"):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield Prometheus(f"http://{address}")
        finally:
            process.terminate()
            process.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
