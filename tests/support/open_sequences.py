"""Open sequences of a server, seen from outside."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import httpx

from tests.support.demo import user

CACHE_TOKENS = 16384  # the default, which the demo keeps
ANSWERS = 16
AT_ONCE = 8


def assert_none_open(http: httpx.Client, model: str) -> None:
    """Ask a model for so many answers of such a length that together they fill its cache to the last token.

    A place is set aside for the whole of an answer before it starts. So the answers all start at once only if
    nothing else, not even a single token, is set aside; otherwise the last one waits until something ends.
    `model` has to be served alone: the members of an ensemble count the same prompt differently, which leaves
    a few tokens free. A client that went away is noticed soon, not at once.
    """
    deadline = time.monotonic() + 30
    while (waiting := answers_that_wait(http, model)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not waiting, f"{waiting} of {ANSWERS} answers had to wait for room in {model}"


def answers_that_wait(http: httpx.Client, model: str) -> int:
    """How many of them have not begun when another has come as far as AT_ONCE pieces."""
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
    pieces: Counter[int] = Counter()
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            choices = json.loads(line[6:])["choices"] if line.startswith("data: {") else []
            pieces.update(choice["index"] for choice in choices if choice["delta"].get("content"))
            if len(pieces) == ANSWERS or max(pieces.values(), default=0) >= AT_ONCE:
                break
    return ANSWERS - len(pieces)
