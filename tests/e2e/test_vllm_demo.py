"""The demo ensemble on vLLM says, token for token, what it says on transformers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Server, serving
from tests.e2e.demo import CONFIG, ENSEMBLE, questions, user

pytest.importorskip("vllm")

PROMPTS = questions(100)
LENGTH = 32
MODELS = ["lingvo", "abacus", "almanac"]


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One thread: more would only fight with those of the server that is compared with."""
    log = tmp_path_factory.mktemp("vllm") / "stderr.log"
    with serving(CONFIG.parent / "demo-vllm.yaml", log, OMP_NUM_THREADS="1") as server:
        yield server


@pytest.fixture(scope="module")
def expected(http: httpx.Client) -> dict[str, list[dict[str, Any]]]:
    """What the transformers engine answers."""
    return {name: answers(http, name, 32) for name in (ENSEMBLE, *MODELS)}


def answers(http: httpx.Client, model: str, at_a_time: int) -> list[dict[str, Any]]:
    """The choices of greedy answers to all prompts."""

    def ask(text: str) -> dict[str, Any]:
        body = {"model": model, "messages": user(text), "temperature": 0, "max_tokens": LENGTH, "logprobs": True}
        answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["choices"][0])

    with ThreadPoolExecutor(at_a_time) as pool:
        return list(pool.map(ask, PROMPTS))


@pytest.mark.parametrize("at_a_time", [1, 32])
@pytest.mark.parametrize("model", [ENSEMBLE, *MODELS])
def test_the_same_tokens(
    vllm: Server, expected: dict[str, list[dict[str, Any]]], model: str, at_a_time: int
) -> None:
    with vllm.http() as http:
        told = answers(http, model, at_a_time)
    for one, other in zip(told, expected[model], strict=True):
        assert one["message"] == other["message"]
        assert one["finish_reason"] == other["finish_reason"]
        tokens, others = one["logprobs"]["content"], other["logprobs"]["content"]
        assert [token["token"] for token in tokens] == [token["token"] for token in others]
        distance = [abs(token["logprob"] - same["logprob"]) for token, same in zip(tokens, others, strict=True)]
        assert max(distance) < 1e-3


def test_what_is_compared_is_worth_comparing(expected: dict[str, list[dict[str, Any]]]) -> None:
    lengths = {len(choice["logprobs"]["content"]) for choice in expected[ENSEMBLE]}
    assert len(lengths) >= 8
    assert max(lengths) == LENGTH
