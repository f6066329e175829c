"""What comes before a request reaches the application is bounded: the head's size, and the time that it takes."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from server.http import connection
from tests.support.scripted_fuser import ScriptedFuser, says
from tests.support.served import Served
from tests.support.small_requests import CHAT

MOST = connection.MOST_BYTES


@pytest.fixture
def raw(serve: Callable[..., Served]) -> Iterator[socket.socket]:
    host, _, port = serve().url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        yield raw


def send(raw: socket.socket, *pieces: bytes) -> bytes:
    """What is answered to these pieces, each read by itself, until the server closes or an answer is whole."""
    try:
        for piece in pieces:
            raw.sendall(piece)
            time.sleep(0.02)
    except OSError:  # it has closed
        pass
    found = b""
    while b"\r\n\r\n" not in found:
        try:
            piece = raw.recv(1 << 16)
        except ConnectionResetError:
            break
        if not piece:
            break
        found += piece
    return found


def posted(body: bytes, fields: bytes = b"") -> bytes:
    size = b"Content-Length: %d\r\n" % len(body) if b"chunked" not in fields else b""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return head + size + fields + b"\r\n" + body


LINE = b"X-A: " + b"a" * 5000 + b"\r\n"
BEGUN = b"GET /health HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [BEGUN, *[LINE] * (2 * MOST // len(LINE))],
        [BEGUN + b"X-A: ", *[b"a" * 10_000] * (2 * MOST // 10_000)],
        [b"GET /", *[b"a" * 10_000] * (2 * MOST // 10_000)],
    ],
    ids=["many headers", "one that does not end", "a path that does not end"],
)
def test_a_head_that_is_too_large_is_refused(raw: socket.socket, pieces: list[bytes]) -> None:
    answer = send(raw, *pieces)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert "The headers are larger" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


def test_what_follows_a_body_is_bounded_too(raw: socket.socket) -> None:
    body = json.dumps(CHAT).encode()
    chunked = b"%x\r\n%s\r\n0\r\nX-A: " % (len(body), body)
    pieces = [posted(b"", b"Transfer-Encoding: chunked\r\n") + chunked, *[b"a" * 10_000] * (2 * MOST // 10_000)]
    send(raw, *pieces)
    for _ in range(50):
        try:
            raw.sendall(b"a" * 10_000)
        except OSError:
            return
        time.sleep(0.02)
    pytest.fail("the connection is still open")


def test_large_bodies_and_heads_within_the_bound_are_served(raw: socket.socket, fuser: ScriptedFuser) -> None:
    fuser.script = lambda submission: says("o")
    body = json.dumps(CHAT | {"user": "u" * 3 * MOST}).encode()
    whole = posted(body, LINE * (MOST // len(LINE) - 1))
    for _ in range(2):  # on one connection
        answer = send(raw, *[whole[at : at + 9000] for at in range(0, len(whole), 9000)])
        assert answer.startswith(b"HTTP/1.1 200 ")
        _, _, rest = answer.partition(b"\r\n\r\n")
        while not rest.endswith(b"}"):
            rest += raw.recv(1 << 16)


@pytest.mark.parametrize("pieces", [[], [BEGUN], [b"GET"]])
def test_a_head_that_takes_too_long_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Served], pieces: list[bytes]
) -> None:
    monkeypatch.setattr(connection, "SECONDS", 0.5)
    host, _, port = serve().url.removeprefix("http://").partition(":")
    began = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        assert send(raw, *pieces) == b""
        assert 0.3 < time.monotonic() - began < 30


def test_a_body_and_an_answer_may_take_their_time(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Served]
) -> None:
    monkeypatch.setattr(connection, "SECONDS", 2)
    host, _, port = serve().url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        whole = posted(json.dumps(CHAT).encode())
        raw.sendall(whole[:-5])
        time.sleep(4)
        assert send(raw, whole[-5:]).startswith(b"HTTP/1.1 200 ")
