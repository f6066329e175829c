"""`tutti serve`: a process from its first line to its exit code."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server import __version__
from tests.support.model_folders import REPOSITORY, run


def test_a_port_in_use_is_said_before_anything_is_loaded(site):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = run("serve", site / "tutti.yaml", "--port", str(port))
    assert (code, out) == (2, "")
    assert err == f"Cannot listen on 127.0.0.1:{port} (address already in use): set another --host or --port.\n"


@pytest.fixture
def process(site: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", "from server.cli import main; main()", "serve", "tutti.yaml"]
    environ = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=site, env=environ, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_from_start_to_end(process, site, number):
    """One line when ready, then answers; a signal lets the answer in progress finish and exits with 0."""
    assert process.stdout is not None
    ready = process.stdout.readline()
    assert ready.startswith(f"Tutti {__version__} serves both, ada, ben at http://127.0.0.1:")
    url = ready.split()[-1].removesuffix("/v1")
    assert httpx.get(f"{url}/health").status_code == 200
    asked = ("eval", "--url", f"{url}/v1", "--tasks", site / "tasks.jsonl", "--limit", "1", "--max-tokens", "2")
    code, out, _ = run(*asked, "--models", "ben", "--models", "both")
    assert (code, [name in out for name in ("both", "ada", "ben")]) == (0, [True, False, True])
    body = {"model": "both", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 200, "stream": True}
    body |= {"ignore_eos": True, "temperature": 0}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        next(lines)
        process.send_signal(number)
        rest = list(lines)
    assert rest[-2] == "data: [DONE]"
    assert any('"finish_reason":"length"' in line for line in rest)
    assert process.wait(timeout=20) == 0
    assert process.stdout.read() == ""
