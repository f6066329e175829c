"""`tutti serve`: a process from its first line to its exit code."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from fusion.core import Trouble
from server import __version__
from server.commands import serve
from server.http.middleware.drain import Lifecycle
from tests.support.forks import Fork
from tests.support.model_folders import run


def test_a_port_in_use_is_said_before_anything_is_loaded(site):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = run("serve", site / "tutti.yaml", "--port", str(port))
    assert (code, out) == (2, "")
    assert err == f"Cannot listen on 127.0.0.1:{port} (address already in use): set another --host or --port.\n"


@pytest.fixture
def process(site: Path, tmp_path: Path) -> Iterator[Fork]:
    with Fork("-m", "server", "serve", "tutti.yaml", folder=site, errors=tmp_path / "log") as process:
        yield process


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


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for a socket, whose path may have 108 bytes at most."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_a_socket_with_a_certificate_a_path_and_a_template_from_a_file(
    broken: Path, tmp_path: Path, short: Path
) -> None:
    """One server with all of them: HTTPS on a Unix socket, below a proxy's path, its template from a file."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tutti"]
    made += ["-addext", "subjectAltName=DNS:tutti", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(made, cwd=broken, check=True, capture_output=True)
    (broken / "mine.jinja").write_text("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    config = (broken / "tutti.yaml").read_text()
    config = config.replace("cache_tokens: 2048}", "cache_tokens: 2048, chat_template: mine.jinja}", 1)
    listening = f"unix_socket: {short / 's'}, tls_certificate: cert.pem, tls_key: key.pem, root_path: /llm"
    config = config.replace("server: {port: 0}", f"server: {{{listening}}}")
    (broken / "tutti.yaml").write_text(config)
    with Fork("-m", "server", "serve", "tutti.yaml", folder=broken, errors=tmp_path / "log") as process:
        assert process.stdout is not None
        assert process.stdout.readline().split()[-1] == f"unix:{short / 's'}"
        trusted = ssl.create_default_context(cafile=str(broken / "cert.pem"))
        transport = httpx.HTTPTransport(uds=str(short / "s"), verify=trusted)
        with httpx.Client(transport=transport, base_url="https://tutti") as client:
            assert client.get("/health").json() == {"status": "ok"}
            body = {"model": "ada", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
            answer = client.post("/v1/chat/completions", json=body | {"return_prompt_text": True})
            assert answer.json()["prompt_text"] == "<Hi>"
            assert client.get("/openapi.json").json()["servers"] == [{"url": "/llm"}]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def test_the_second_signal_ends_a_server_that_waits_for_an_engine_that_hangs(monkeypatch):
    ended, codes = threading.Event(), []
    monkeypatch.setattr(serve, "FORCED_SECONDS", 0.1)
    monkeypatch.setattr(serve.os, "_exit", lambda code: (codes.append(code), ended.set()))
    config, nothing = uvicorn.Config(None, log_config=None), lambda: None
    server = serve._Server(config, Lifecycle(), nothing, nothing, 60.0, nothing)
    server.handle_exit(signal.SIGTERM, None)
    assert not ended.wait(0.3)
    for _ in range(2):
        server.handle_exit(signal.SIGTERM, None)
    assert ended.wait(10)
    assert not threading.Event().wait(0.3)
    assert codes == [1]


def test_one_signal_ends_what_is_unfinished_and_a_server_whose_engine_hangs(monkeypatch):
    ended, answers = threading.Event(), []
    monkeypatch.setattr(serve, "ENDING_SECONDS", 0.1)
    monkeypatch.setattr(serve.os, "_exit", lambda code: ended.set())
    config, nothing = uvicorn.Config(None, log_config=None), lambda: None
    server = serve._Server(
        config, Lifecycle(in_progress=1), nothing, lambda: answers.append("ended"), 0.0, nothing
    )
    server.servers, server.config.loaded = [], True
    server.handle_exit(signal.SIGTERM, None)
    asyncio.run(server.on_tick(1))
    assert server.should_exit
    assert answers == ["ended"]
    assert ended.wait(10)


def test_a_server_that_only_a_restart_helps_ends_by_itself(monkeypatch, caplog):
    ended, found = threading.Event(), [Trouble("Not answering: a", lasting=False)]
    monkeypatch.setattr(serve, "UNWELL_SECONDS", 0.3)
    monkeypatch.setattr(serve, "FORCED_SECONDS", 0.1)
    monkeypatch.setattr(serve.os, "_exit", lambda code: ended.set())
    lifecycle = Lifecycle(in_progress=1)
    config, nothing = uvicorn.Config(None, log_config=None), lambda: None
    server = serve._Server(config, lifecycle, lambda: found[0], nothing, 60.0, nothing)

    def ticks():
        for _ in range(3):
            asyncio.run(server.on_tick(0))
            time.sleep(0.2)
        return server.should_exit

    server.servers, server.config.loaded = [], True
    assert not ticks(), "its engine may work again at the next step"
    found[0] = Trouble("Not answering: a", lasting=True)
    asyncio.run(server.on_tick(0))
    found[0] = None
    assert not ticks(), "it is well again"
    found[0] = Trouble("Not answering: a", lasting=True)
    ticks()
    asyncio.run(server.on_tick(1))
    assert server.should_exit
    assert lifecycle.draining
    assert server.unwell_since is not None
    assert ended.wait(10)
    assert "Not answering: a, and only a restart helps: the server ends" in caplog.text
