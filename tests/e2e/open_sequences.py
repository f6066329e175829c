"""Whether the server holds any sequence open, seen from outside."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.e2e.demo import user

CACHE_TOKENS = 16384  # the default, which the demo keeps
ANSWERS = 16


def assert_none_open(http: httpx.Client, model: str) -> None:
    """Ask a model for so many answers of such a length that together they fill its cache to the last token.

    A place is set aside for the whole of an answer before it starts. So the answers all start at once only if
    nothing else, not even a single token, is set aside; otherwise the last one waits for the first to end.
    `model` has to be served alone: the members of an ensemble count the same prompt differently, which leaves
    a few tokens free.
    """
    prompt = http.post("/tokenize", json={"model": model, "messages": user("Hello")}).json()
    assert ANSWERS * prompt["max_model_len"] == CACHE_TOKENS
    body: dict[str, Any] = {
        "model": model,
        "messages": user("Hello"),
        "n": ANSWERS,
        "max_tokens": prompt["max_model_len"] - prompt["count"],
        "ignore_eos": True,
        "stream": True,
    }
    started = set()
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            data = line.removeprefix("data: ")
            if not data.startswith("{"):
                continue
            for choice in json.loads(data)["choices"]:
                assert choice["finish_reason"] is None, (
                    f"{ANSWERS - len(started)} answers wait for room in {model}"
                )
                if choice["delta"].get("content"):
                    started.add(choice["index"])
            if len(started) == ANSWERS:
                return
    raise AssertionError(f"the stream ended with {len(started)} of {ANSWERS} answers begun")
