"""The smallest requests of both endpoints, and the error object that refusals have to have."""

from __future__ import annotations

from typing import Any

from starlette.testclient import TestClient

CHAT = {"model": "pair", "messages": [{"role": "user", "content": "hi"}]}


TEXT = {"model": "pair", "prompt": "hi"}


CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"


def error_of(answer: Any, status: int) -> dict[str, Any]:
    """The error object, whose shape is the same for every status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"].endswith(".")
    assert len(error["message"]) < 500
    return error


HELLO = [{"role": "user", "content": "hi"}]


PROMPT_TOKENS = len("user:hi\nanswer:")


def chat(client: TestClient, **fields: object) -> dict:
    answer = client.post("/v1/chat/completions", json={"model": "pair", "messages": HELLO, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def complete(client: TestClient, **fields: object) -> dict:
    answer = client.post("/v1/completions", json={"model": "pair", "prompt": "hi", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()
