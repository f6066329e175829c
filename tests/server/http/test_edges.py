"""What holds for every answer: ids, keys, and the size of bodies."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace

import httpx
import pytest
from starlette.testclient import TestClient

from server.http.app import create_app
from server.settings import ServerSettings
from tests.support.scripted_fuser import ScriptedFuser, ensemble
from tests.support.served import Served
from tests.support.small_requests import CHAT, CHAT_PATH, error_of

Serve = Callable[..., Served]


def test_a_sane_request_id_comes_back(client: TestClient) -> None:
    for sane in ("mine", "x" * 128, "a b;c/1"):
        headers = client.get("/health", headers={"x-request-id": sane}).headers
        assert headers["x-request-id"] == headers["request-id"] == sane


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
    with socket.create_connection((url.host, url.port), timeout=30) as connection:
        connection.sendall(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n{")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_an_endless_body_is_cut_off(serve: Serve) -> None:
    url = httpx.URL(serve(max_body_bytes=1000).url)
    with socket.create_connection((url.host, url.port), timeout=30) as connection:
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


def test_what_stands_before_the_routes_answers_messages_in_their_own_shape(fuser: ScriptedFuser) -> None:
    settings = ServerSettings(api_keys=("secret",), max_body_bytes=100)
    with TestClient(create_app({"pair": ensemble()}, fuser, settings)) as client:
        path, key = "/v1/messages", {"x-api-key": "secret"}
        answers = [
            (client.post(path, json={}), 401, "authentication_error"),
            (client.post(path, content=b"x" * 200, headers=key), 413, "request_too_large"),
            (client.post(path, content=b"{", headers=key), 400, "invalid_request_error"),
            (client.get(path, headers=key), 405, "invalid_request_error"),
            (client.post(f"{path}/nothing", json={}, headers=key), 404, "not_found_error"),
        ]
        client.app.state.lifecycle.draining = True  # type: ignore[attr-defined]
        answers.append((client.post(path, json={}, headers=key), 503, "overloaded_error"))
    for answer, status, kind in answers:
        assert answer.status_code == status
        body = answer.json()
        assert (body["type"], body["error"]["type"]) == ("error", kind)
        assert body["request_id"] == answer.headers["x-request-id"] == answer.headers["request-id"]


def test_behind_a_proxy_paths_are_those_below_its_own(fuser: ScriptedFuser) -> None:
    app = create_app({"pair": ensemble()}, fuser, ServerSettings(api_keys=("secret",)))
    with TestClient(app, root_path="/llm") as client:  # as uvicorn passes it on
        assert client.get("/llm/health").status_code == 200  # no key
        assert error_of(client.post("/llm/v1/models"), 401)
        error = error_of(client.get("/llm/models", headers={"authorization": "Bearer secret"}), 404)
        assert error["message"].endswith("the right one is /v1/models.")


def test_without_origins_a_preflight_is_told_the_methods_alone(client: TestClient) -> None:
    asked = {"origin": "http://page", "access-control-request-method": "POST"}
    answer = client.options(CHAT_PATH, headers=asked)
    assert (answer.status_code, answer.headers["allow"]) == (204, "POST")
    assert not any(name.startswith("access-control") for name in answer.headers)
    assert client.options("/nowhere").status_code == 404


def test_sampling_defaults_are_the_checkpoints_where_the_operator_says_so(fuser: ScriptedFuser) -> None:
    ours = ensemble()
    ours.models["a"] = replace(ours.models["a"], sampling={"temperature": 0.6, "top_k": 20})
    for setting, expected in (("openai", (1.0, 0)), ("checkpoint", (0.6, 20))):
        with TestClient(create_app({"pair": ours}, fuser, ServerSettings(sampling_defaults=setting))) as client:
            assert client.post(CHAT_PATH, json=CHAT).status_code == 200
            assert (fuser.last.sampling.temperature, fuser.last.sampling.top_k) == expected
            client.post(CHAT_PATH, json=CHAT | {"temperature": 0})
            assert fuser.last.sampling.temperature == 0


def test_every_stream_ends_with_usage_where_the_operator_says_so(fuser: ScriptedFuser) -> None:
    with TestClient(create_app({"pair": ensemble()}, fuser, ServerSettings(force_usage=True))) as client:
        assert '"usage":{' in client.post(CHAT_PATH, json=CHAT | {"stream": True}).text
