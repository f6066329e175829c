"""The log as machines read it: every line is an object, requests have one each, and nobody's words are in it."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.http.app import create_app
from server.settings import ServerSettings
from server.telemetry.logs import LogFormat, set_up_log
from tests.support.scripted_fuser import ScriptedFuser, ensemble, says
from tests.support.served import Served
from tests.support.small_requests import CHAT_PATH

SECRET = "sk-secret"
ASK: dict[str, Any] = {"model": "pair", "messages": [{"role": "user", "content": "my secret"}], "max_tokens": 5}

Log = Callable[[LogFormat], io.StringIO]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """Sets the log up as the server does, and gives what it writes."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level

    def start(log_format: LogFormat) -> io.StringIO:
        text = io.StringIO()
        with monkeypatch.context() as patch:
            patch.setattr("sys.stderr", text)
            set_up_log("info", log_format)
        return text

    yield start
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)


def lines(text: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.getvalue().splitlines()]


def test_a_request_is_a_line(log: Log, fuser: ScriptedFuser) -> None:
    text = log("json")
    fuser.script = lambda submission: says("Hel", "lo secret", finish="length")
    with TestClient(create_app({"pair": ensemble()}, fuser, ServerSettings(api_keys=(SECRET,)))) as client:
        headers = {"x-request-id": "mine", "authorization": f"Bearer {SECRET}"}
        assert client.post(CHAT_PATH, json={**ASK, "stream": True}, headers=headers).is_success
        assert client.post(CHAT_PATH, json=ASK).status_code == 401
        client.get("/health"), client.get("/metrics"), client.get("/v1/models", headers=headers)
    first, second = (line for line in lines(text) if line["logger"] == "server.requests")
    assert first["request_id"] == "mine"
    assert (first["model"], first["status"], first["outcome"]) == ("pair", 200, "length")
    assert first["finish_reasons"] == ["length"]
    assert first["sequences"] == [fuser.last.number]
    assert first["generated_tokens"] == 2
    assert first["prompt_tokens"] > 0
    assert 0 < first["first_token_seconds"] <= first["seconds"] < 10
    assert len(first["key"]) == 12
    assert second["status"] == 401
    assert second["request_id"] not in ("mine", "")
    assert "secret" not in text.getvalue()


def test_what_else_is_logged_while_answering_has_the_id(log: Log, fuser: ScriptedFuser) -> None:
    text = log("json")
    fuser.refuse = (0, ArithmeticError("cannot count"))
    with TestClient(create_app({"pair": ensemble()}, fuser, ServerSettings())) as client:
        assert client.post(CHAT_PATH, json=ASK, headers={"x-request-id": "mine"}).status_code == 500
    failed = [line for line in lines(text) if line["level"] == "error"]
    assert failed
    assert all(line["request_id"] == "mine" for line in failed)
    assert any("ArithmeticError: cannot count" in line.get("exception", "") for line in failed)
    assert all(line["time"].endswith("+00:00") for line in failed)


def test_uvicorns_lines_are_of_the_same_format(log: Log, serve: Callable[..., Served]) -> None:
    served = serve()  # sets uvicorn's own level, to warnings
    text = log("json")
    logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    with served.http() as http:
        for path in ("/v1/models?secret", "/health", "/ready", "/metrics"):
            assert http.get(path, headers={"x-request-id": "mine"}).is_success
    [access] = [line for line in lines(text) if line["logger"] == "uvicorn.access"]
    assert (access["method"], access["path"], access["status"]) == ("GET", "/v1/models", 200)
    assert access["request_id"] == "mine"
    assert "secret" not in text.getvalue()


def test_people_get_a_sentence(log: Log, fuser: ScriptedFuser) -> None:
    text = log("text")
    with TestClient(create_app({"pair": ensemble()}, fuser, ServerSettings())) as client:
        assert client.post(CHAT_PATH, json=ASK).is_success
    [line] = [line for line in text.getvalue().splitlines() if "server.requests" in line]
    assert "pair: stop, " in line
    assert re.search(r" \+ 3 generated tokens in \d+\.\d", line)


def test_a_request_refused_at_the_door_is_not_said_to_have_no_path(log: Log, fuser: ScriptedFuser) -> None:
    """While the server drains, or without a key, nobody has looked for the path yet."""
    text = log("text")
    with TestClient(create_app({"pair": ensemble()}, fuser, ServerSettings(api_keys=(SECRET,)))) as client:
        assert client.post(CHAT_PATH, json=ASK).status_code == 401
    assert "POST (unrouted): 401" in text.getvalue()


@pytest.mark.parametrize("library", ["transformers", "huggingface_hub"])
def test_libraries_write_lines_of_the_same_format(
    log: Log, library: str, capfd: pytest.CaptureFixture[str]
) -> None:
    text = log("json")
    logging.getLogger(f"{library}.some_module").warning("from a library")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("of python's", stacklevel=1)
    assert [line["logger"] for line in lines(text)] == [f"{library}.some_module", "py.warnings"]
    assert capfd.readouterr().err == ""
