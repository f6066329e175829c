"""The demo ensemble on vLLM says, token for token, what it says on transformers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.demo import CONFIG, ENSEMBLE, questions, user
from tests.support.scraped_server import Scrape
from tests.support.scripted_fuser import eventually
from tests.support.serving import Server, serving

pytest.importorskip("vllm")

PROMPTS = questions(100)
LENGTH = 32
MODELS = ["lingvo", "abacus", "almanac"]
LATENCIES = ("time_to_first_token", "inter_token_latency", "e2e_request_latency")


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("vllm") / "stderr.log"
    with serving(CONFIG.parent / "demo-vllm.yaml", log) as server:
        yield server


@pytest.fixture(scope="module")
def expected(http: httpx.Client) -> dict[str, list[dict[str, Any]]]:
    """What the transformers engine answers."""
    return {name: answers(http, name, 32) for name in (ENSEMBLE, *MODELS)}


def answers(
    http: httpx.Client, model: str, at_a_time: int, prompts: Sequence[str] = PROMPTS, **fields: Any
) -> list[dict[str, Any]]:
    """The choices of greedy answers to prompts."""

    def ask(text: str) -> dict[str, Any]:
        body = {"model": model, "messages": user(text), "temperature": 0, "max_tokens": LENGTH, "logprobs": True}
        answer = http.post("/v1/chat/completions", json=body | fields)
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["choices"][0])

    with ThreadPoolExecutor(at_a_time) as pool:
        return list(pool.map(ask, prompts))


def require_the_same(told: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Answers have the same text and ends, and tokens with the same log-probabilities."""
    for one, other in zip(told, expected, strict=True):
        assert one["message"] == other["message"]
        assert one["finish_reason"] == other["finish_reason"]
        tokens, others = one["logprobs"]["content"], other["logprobs"]["content"]
        assert [token["token"] for token in tokens] == [token["token"] for token in others]
        distance = [abs(token["logprob"] - same["logprob"]) for token, same in zip(tokens, others, strict=True)]
        assert max(distance) < 1e-3


@pytest.mark.parametrize(("at_a_time", "prompts"), [(1, 8), (32, len(PROMPTS))])
@pytest.mark.parametrize("model", [ENSEMBLE, *MODELS])
def test_the_same_tokens(
    vllm: Server, expected: dict[str, list[dict[str, Any]]], model: str, at_a_time: int, prompts: int
) -> None:
    with vllm.http() as http:
        told = answers(http, model, at_a_time, PROMPTS[:prompts])
    require_the_same(told, expected[model][:prompts])


SCHEMA = {
    "type": "object",
    "properties": {
        "total": {"type": "integer", "minimum": 0, "maximum": 99},
        "unit": {"enum": ["apples", "pears"]},
    },
    "required": ["total", "unit"],
    "additionalProperties": False,
}
MASKED: dict[str, dict[str, Any]] = {
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA}}},
    # Digits that no answer of the demo has, so they are not among the candidates that a member picks by itself.
    "regex": {"guided_regex": "[०-९]{3}"},
}


@pytest.mark.parametrize("mask", MASKED)
@pytest.mark.parametrize("model", [ENSEMBLE, "abacus"])
def test_the_same_tokens_under_a_mask(vllm: Server, http: httpx.Client, model: str, mask: str) -> None:
    """The pivot applies it before it picks its candidates, or the other engine would answer otherwise."""
    expected = answers(http, model, 8, PROMPTS[:8], **MASKED[mask])
    assert {choice["finish_reason"] for choice in expected} == {"stop"}
    with vllm.http() as served:
        require_the_same(answers(served, model, 8, PROMPTS[:8], **MASKED[mask]), expected)
    drawn = [token["logprob"] for choice in expected for token in choice["logprobs"]["content"]]
    assert any(-9000 < logprob < 0 for logprob in drawn), "something was chosen among what is admitted"


@pytest.mark.parametrize("model", [ENSEMBLE, "abacus"])
def test_metrics_agree_with_what_the_client_saw(vllm: Server, model: str) -> None:
    """Of rounds, and of a model that vLLM decodes with its own loop."""
    asked, together = 4, model == ENSEMBLE
    members = MODELS if together else [model]
    with vllm.http() as http:
        before, usage = Scrape(http.get("/metrics").text), Counter[str]()
        for text in PROMPTS[:asked]:
            body = {"model": model, "messages": user(text), "max_tokens": LENGTH, "ignore_eos": True}
            told = http.post("/v1/chat/completions", json=body).json()["usage"]
            usage.update({kind: told[kind] for kind in ("prompt_tokens", "completion_tokens")})

        def change(name: str, **labels: str) -> float:
            return Scrape(http.get("/metrics").text).value(name, **labels) - before.value(name, **labels)

        assert eventually(lambda: change("requests_total", model=model) == asked)
        generated = usage["completion_tokens"]
        assert generated == asked * LENGTH
        assert change("generation_tokens_total", model=model) == generated
        assert change("prompt_tokens_total", model=model) == usage["prompt_tokens"]
        assert change("time_to_first_token_seconds_count", model=model) == asked
        assert change("request_queue_time_seconds_count", model=model) == asked
        assert change("inter_token_latency_seconds_count", model=model) == generated - asked
        first, between, whole = (change(f"{name}_seconds_sum", model=model) for name in LATENCIES)
        assert first + between <= whole
        assert 0 <= change("request_queue_time_seconds_sum", model=model) < first < whole
        assert change("rounds_total", model=model) == (generated if together else 0), (
            "only what is fused is a round"
        )
        for stage in ("waiting", "fusion", "sampling", "synchronisation"):
            assert (change("round_stage_seconds_sum", model=model, stage=stage) > 0) == together
        for member in members:
            assert change("member_step_seconds_count", member=member) >= generated
            assert 0 < change("member_step_seconds_sum", member=member) < whole
            assert change("member_answer_seconds_count", member=member, phase="prefill") == asked

        def held() -> bool:
            now = Scrape(http.get("/metrics").text)
            ratios = ("member_kv_usage_ratio", "member_kv_reserved_ratio")
            shares = [[now.value(name, member=member) for name in ratios] for member in members]
            return all(0 < used < reserved <= 1 for used, reserved in shares)

        with http.stream(
            "POST", "/v1/chat/completions", json=body | {"max_tokens": 900, "stream": True}
        ) as answer:
            assert answer.status_code == 200
            assert eventually(held)


@pytest.mark.alone
@pytest.mark.parametrize("model", [ENSEMBLE, "abacus"])
def test_latencies_agree_with_what_the_client_saw(vllm: Server, model: str) -> None:
    with vllm.http() as http:
        before, seconds = Scrape(http.get("/metrics").text), 0.0
        for text in PROMPTS[:4]:
            body = {"model": model, "messages": user(text), "max_tokens": LENGTH, "ignore_eos": True}
            began = time.perf_counter()
            assert http.post("/v1/chat/completions", json=body).status_code == 200
            seconds += time.perf_counter() - began

        def change(name: str) -> float:
            return Scrape(http.get("/metrics").text).value(name, model=model) - before.value(name, model=model)

        assert eventually(lambda: change("requests_total") == 4)
        first, between, whole = (change(f"{name}_seconds_sum") for name in LATENCIES)
    assert 0.5 * seconds < whole < seconds
    assert first + between == pytest.approx(whole, rel=0.2)


def test_what_is_compared_is_worth_comparing(expected: dict[str, list[dict[str, Any]]]) -> None:
    lengths = {len(choice["logprobs"]["content"]) for choice in expected[ENSEMBLE]}
    assert len(lengths) >= 8
    assert max(lengths) == LENGTH
