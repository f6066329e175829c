"""What holds for every answer: ids, keys, and the size of bodies."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import httpx
import pytest
from starlette.testclient import TestClient

from server.http.app import create_app
from server.settings import ServerSettings
from tests.server.conftest import Served
from tests.server.http.test_bad_input import CHAT, CHAT_PATH, error_of
from tests.support.scripted_fuser import ScriptedFuser, ensemble

Serve = Callable[..., Served]
KEYS = ("sk-one", "sk-zwei-ü")


@pytest.fixture
def locked(fuser: ScriptedFuser) -> Iterator[TestClient]:
    with TestClient(create_app({"pair": ensemble()}, fuser, ServerSettings(api_keys=KEYS))) as client:
        yield client


def test_a_sane_request_id_comes_back(client: TestClient) -> None:
    for sane in ("mine", "x" * 128, "a b;c/1"):
        assert client.get("/health", headers={"x-request-id": sane}).headers["x-request-id"] == sane


@pytest.mark.parametrize("insane", [b"", b"x" * 129, b"caf\xc3\xa9", b"a\x7fb"])
def test_an_insane_request_id_is_replaced(client: TestClient, insane: bytes) -> None:
    given = client.get("/health", headers={b"x-request-id": insane}).headers["x-request-id"]
    assert given.encode("latin-1") != insane
    assert 0 < len(given) <= 128


def test_request_ids_differ(client: TestClient) -> None:
    assert client.get("/health").headers["x-request-id"] != client.get("/health").headers["x-request-id"]


@pytest.mark.parametrize(("method", "path"), [("GET", "/nowhere"), ("GET", CHAT_PATH), ("POST", CHAT_PATH)])
def test_errors_carry_the_request_id(client: TestClient, method: str, path: str) -> None:
    answer = client.request(method, path, headers={"x-request-id": "mine"})
    assert answer.status_code >= 400
    assert answer.headers["x-request-id"] == "mine"


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer sk-on", "Bearer sk-one2", "Basic sk-one", "sk-one", "Bearer \xff"],
)
@pytest.mark.parametrize("path", ["/v1/models", "/tokenizer_info", "/nowhere", "/openapi.json"])
def test_without_a_key_nothing_is_told(locked: TestClient, path: str, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    answer = locked.get(path, headers=headers)
    error = error_of(answer, 401)
    assert error["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", KEYS)
def test_any_of_the_keys_opens(locked: TestClient, key: str) -> None:
    for scheme in ("Bearer", "bearer"):
        answer = locked.get("/v1/models", headers={"authorization": f"{scheme} {key}".encode()})
        assert answer.status_code == 200


def test_health_and_version_stay_open(locked: TestClient) -> None:
    assert locked.get("/health").status_code == 200
    assert locked.get("/version").status_code == 200


def test_keys_are_flows_of_their_own_and_not_told_to_the_fuser(locked: TestClient, fuser: ScriptedFuser) -> None:
    for key in KEYS:
        assert locked.post(CHAT_PATH, json=CHAT, headers={"authorization": f"Bearer {key}".encode()}).is_success
    first, second = (submission.flow for submission in fuser.submissions)
    assert first != second
    assert not any(key in (first, second) for key in KEYS)


def test_keys_stay_out_of_the_options_repr() -> None:
    assert "sk-one" not in repr(ServerSettings(api_keys=KEYS))


LARGE = b'{"prompt": "' + b"x" * 10_000_000 + b'"}'


def chunks(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), 65536):
        yield data[start : start + 65536]


@pytest.mark.parametrize("content", [LARGE, list(chunks(LARGE))], ids=["declared", "chunked"])
def test_large_bodies_are_413(serve: Serve, content: bytes | list[bytes]) -> None:
    served = serve()
    body = content if isinstance(content, bytes) else iter(content)
    with served.http() as http:
        error = error_of(http.post(CHAT_PATH, content=body), 413)
        assert "4194304" in error["message"]
        assert http.get("/health").status_code == 200


def test_a_declared_length_is_refused_before_the_body_comes(serve: Serve) -> None:
    url = httpx.URL(serve().url)
    with socket.create_connection((url.host, url.port), timeout=5) as connection:
        connection.sendall(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n{")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_an_endless_body_is_cut_off(serve: Serve) -> None:
    url = httpx.URL(serve(max_body_bytes=1000).url)
    with socket.create_connection((url.host, url.port), timeout=5) as connection:
        connection.sendall(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"401\r\n" + b"x" * 1025 + b"\r\n")
        answer = b""
        while received := connection.recv(4096):  # until the server hangs up
            answer += received
        assert answer.startswith(b"HTTP/1.1 413 ")


def test_bodies_at_the_limit_are_read(fuser: ScriptedFuser) -> None:
    body = b'{"prompt": "a"}'
    app = create_app({"pair": ensemble()}, fuser, ServerSettings(max_body_bytes=len(body)))
    with TestClient(app) as client:
        for content in (body, iter([body[:5], body[5:]])):
            answer = client.post("/tokenize", content=content, headers={"content-type": "application/json"})
            assert answer.status_code == 200
        for content in (body + b" ", iter([body, b" "])):
            answer = client.post("/tokenize", content=content, headers={"content-type": "application/json"})
            error_of(answer, 413)
