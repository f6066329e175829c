"""A running `tutti serve`: started on a free port, stopped in good order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.demo import REPOSITORY

# For the measurement of memory: oneDNN keeps a compiled kernel for every number of rows it has met, and malloc
# keeps what was freed. Told not to, what is left is what the server itself holds.
MEMORY = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}

START = [sys.executable, "-m", "server", "serve"]


@dataclass(frozen=True)
class Server:
    """A running `tutti serve` of the demo ensemble."""

    url: str
    pid: int

    def http(self) -> httpx.Client:
        """A client of everything under the server's root."""
        return httpx.Client(base_url=self.url, timeout=120)


@contextmanager
def serving(config: Path, log: Path, **environment: str) -> Iterator[Server]:
    """A process that serves a configuration, and leaves in good order when told to."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TUTTI_")}
    environ |= {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", **environment}
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [*START, str(config), "--port", "0"], env=environ, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()  # "Tutti 0.1.0 serves a, b at http://127.0.0.1:4711/v1"
            assert ready, log.read_text()
            url = ready.split()[-1].removesuffix("/v1")
            assert httpx.get(f"{url}/health").status_code == 200
            yield Server(url, process.pid)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0, log.read_text()[-2000:]
            assert "Traceback" not in log.read_text()
        finally:
            process.kill()
