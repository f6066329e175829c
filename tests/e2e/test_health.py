"""/health beside requests that are as heavy as the server lets through: the event loop stays free for others."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import httpx
import pytest

from tests.support.demo import ENSEMBLE, user
from tests.support.serving import Server

LONGEST = 0.5  # seconds that an answer of /health may take
MEBIBYTE = 2**20

WORDS = "The quick brown fox counts 12 apples. "
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "a long text": ("/v1/completions", {"prompt": WORDS * (3 * MEBIBYTE // len(WORDS))}),
    "a text without spaces": ("/v1/completions", {"prompt": "a" * (3 * MEBIBYTE)}),
    "many bytes a character": ("/v1/completions", {"prompt": "\U0001f600" * (3 * MEBIBYTE // 12)}),
    "a long message": ("/v1/chat/completions", {"messages": user(WORDS * (3 * MEBIBYTE // len(WORDS)))}),
    "many messages": ("/v1/chat/completions", {"messages": user("a") * 60_000}),
    "many long messages": ("/v1/chat/completions", {"messages": user(WORDS * 300) * 290}),
    "log-probabilities of prompts": (
        "/v1/completions",
        {"prompt": [WORDS * 20] * 50, "echo": True, "logprobs": 20, "max_tokens": 1},
    ),
    "many ids": ("/v1/completions", {"prompt": [5] * (MEBIBYTE // 2)}),
    "text to tokenize": ("/tokenize", {"prompt": WORDS * (3 * MEBIBYTE // len(WORDS))}),
    "ids to detokenize": ("/detokenize", {"tokens": [5] * (MEBIBYTE // 2)}),
    "the largest search": (
        "/v1/completions",
        {
            "prompt": WORDS * 12,
            "fusion": {
                "weights": "packllm-opt",
                "combine": "product",
                "weighting": {"grid": 21, "positions": 190, "coinciding": 1},
            },
        },
    ),
}


def slowest_health(server: Server, path: str, body: dict[str, Any]) -> tuple[float, int]:
    """The longest that /health took while the server dealt with a request, and that request's status."""
    content = json.dumps({"model": ENSEMBLE, "max_tokens": 2, **body} if path.startswith("/v1") else body)
    statuses: list[int] = []

    def ask() -> None:
        with server.http() as http:
            headers = {"content-type": "application/json"}
            statuses.append(http.post(path, content=content, headers=headers).status_code)

    asking = threading.Thread(target=ask)
    longest = 0.0
    with httpx.Client(base_url=server.url, timeout=60) as http:
        http.get("/health")
        asking.start()
        while asking.is_alive():
            began = time.perf_counter()
            assert http.get("/health").status_code == 200
            longest = max(longest, time.perf_counter() - began)
            time.sleep(0.01)
    asking.join()
    return longest, statuses[0]


@pytest.mark.alone
@pytest.mark.parametrize("kind", REQUESTS)
def test_health_answers_beside_any_single_request(server: Server, kind: str) -> None:
    for _ in range(3):  # what else runs on the machine only adds
        longest, status = slowest_health(server, *REQUESTS[kind])
        print(f"{kind}: status {status}, /health took at most {1e3 * longest:.0f} ms")
        assert status < 500
        if longest < LONGEST:
            break
    assert longest < LONGEST
