"""A budget of thoughts through every API: kept by a served ensemble, or refused by the name of its field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from alignment.text.tokenizer import Tokenizer
from server.http.app import create_app
from server.loading import build
from server.settings import ServerSettings, read_settings
from tests.support.scripted_fuser import ScriptedFuser, ensemble, says
from tests.support.small_requests import CHAT, CHAT_PATH, TEXT, TEXT_PATH, chat, error_of

DEMO = Path(__file__).parents[3] / "deploy" / "demo" / "models"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: "
    "{% if enable_thinking | default(true) %}<think>\n{% endif %}{% endif %}"
)
USER = [{"role": "user", "content": "Hello"}]
SCHEMA = {"enum": ["yes", "no"]}
PIVOTS = ["lingvo", "abacus"]


@pytest.fixture(scope="module")
def thinkers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The demo's members with a template that opens thoughts, around two pivots."""
    folder = tmp_path_factory.mktemp("thinkers")
    (folder / "thinks.jinja").write_text(TEMPLATE, encoding="utf-8")
    config = {
        "models": {
            name: {"source": str(DEMO / name), "dtype": "float32", "chat_template": "thinks.jinja"}
            for name in PIVOTS
        },
        "ensembles": {f"by-{name}": {"members": PIVOTS, "pivot": name} for name in PIVOTS},
    }
    path = folder / "thinkers.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    read = read_settings(path, {})
    runtime = build(read)
    with TestClient(create_app(runtime.ensembles, runtime.fuser, read.server)) as client:
        yield client


def tokens_of(pivot: str, text: str) -> list[int]:
    return Tokenizer.load(str(DEMO / pivot)).continuation.encode(text)


def ask(client: TestClient, path: str, **fields: Any) -> dict[str, Any]:
    answer = client.post(path, json=fields)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


@pytest.mark.parametrize("pivot", PIVOTS)
@pytest.mark.parametrize("budget", [0, 4])
def test_thoughts_end_with_the_budget(thinkers: TestClient, pivot: str, budget: int) -> None:
    fields = {"model": f"by-{pivot}", "messages": USER, "max_tokens": 24, "temperature": 0.8, "seed": 3}
    fields |= {"ignore_eos": True}
    answer = ask(
        thinkers, CHAT_PATH, **fields, n=2, thinking_token_budget=budget, return_token_ids=True, logprobs=True
    )
    tag = tokens_of(pivot, "</think>")
    for choice in answer["choices"]:
        assert choice["token_ids"][budget : budget + len(tag)] == tag
        assert choice["message"]["content"].strip()
        assert bool(choice["message"].get("reasoning")) == bool(budget)
        assert len(choice["logprobs"]["content"]) == len(choice["token_ids"])
    free = ask(thinkers, CHAT_PATH, **fields, thinking_token_budget=-1)["choices"][0]["message"]
    large = ask(thinkers, CHAT_PATH, **fields, thinking_token_budget=5000)["choices"][0]["message"]
    assert free["reasoning"] == large["reasoning"]
    assert not free["content"]


def test_a_stream_and_a_draft_say_the_same(thinkers: TestClient) -> None:
    fields = {
        "model": "by-lingvo",
        "messages": USER,
        "max_tokens": 24,
        "temperature": 0,
        "thinking_token_budget": 5,
    }
    plain = ask(thinkers, CHAT_PATH, **fields)["choices"][0]["message"]
    text = thinkers.post(CHAT_PATH, json=fields | {"stream": True, "fusion": {"draft": "ngram"}}).text
    events = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == plain["reasoning"]
    assert "".join(delta.get("content", "") for delta in deltas) == plain["content"]


def test_a_schema_binds_the_answer_after_the_budget(thinkers: TestClient) -> None:
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    for pivot in PIVOTS:
        choice = ask(
            thinkers, CHAT_PATH, model=f"by-{pivot}", messages=USER, max_tokens=60, thinking_token_budget=3,
            response_format=format, seed=1,
        )["choices"][0]  # fmt: skip
        assert json.loads(choice["message"]["content"]) in ("yes", "no")
        assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("begun", ["<think>", "<think>One two", "<think>One two three four five six seven"])
def test_a_prompt_may_have_begun_to_think(thinkers: TestClient, begun: str) -> None:
    """Its thoughts count, and those that follow are none of the content."""
    spent = len(tokens_of("lingvo", begun.removeprefix("<think>"))) if begun != "<think>" else 0
    left, tag = max(6 - spent, 0), tokens_of("lingvo", "</think>")
    fields = {"model": "by-lingvo", "max_tokens": 20, "thinking_token_budget": 6, "ignore_eos": True, "seed": 1}
    fields |= {"return_token_ids": True}
    said = [*USER, {"role": "assistant", "content": begun}]
    choice = ask(thinkers, CHAT_PATH, **fields, messages=said, continue_final_message=True)["choices"][0]
    assert choice["token_ids"][left : left + len(tag)] == tag
    assert "think>" not in choice["message"]["content"]
    prompts = [f"Question? {begun}", f"{begun}</think> <b>"]
    first, second = ask(thinkers, TEXT_PATH, **fields, prompt=prompts)["choices"]
    assert first["token_ids"][left : left + len(tag)] == tag
    assert "</think>" in first["text"]
    assert second["token_ids"][: len(tag)] != tag


def test_responses_and_messages_take_it(thinkers: TestClient) -> None:
    fields = {"model": "by-lingvo", "temperature": 0, "ignore_eos": True, "thinking_token_budget": 4}
    response = ask(thinkers, "/v1/responses", **fields, input="Hello", max_output_tokens=24)
    assert [item["type"] for item in response["output"]] == ["reasoning", "message"]
    body = {"model": "by-lingvo", "messages": USER, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    message = ask(thinkers, "/v1/messages", **body, thinking={"type": "enabled", "budget_tokens": 4})
    assert [block["type"] for block in message["content"]] == ["thinking", "text"]
    off = ask(thinkers, "/v1/messages", **body, thinking={"type": "disabled"})
    assert [block["type"] for block in off["content"]] == ["text"]
    endless = ask(thinkers, "/v1/messages", **body, thinking={"type": "adaptive"})
    assert [block["type"] for block in endless["content"]] == ["thinking"]


@pytest.mark.parametrize("value", ["20", -2, 1.5, True, [3]])
@pytest.mark.parametrize("path", [CHAT_PATH, TEXT_PATH, "/v1/responses"])
def test_what_is_no_budget_is_named(client: TestClient, path: str, value: Any) -> None:
    body = {CHAT_PATH: CHAT, TEXT_PATH: TEXT, "/v1/responses": {"model": "pair", "input": "hi"}}[path]
    error = error_of(client.post(path, json=body | {"thinking_token_budget": value}), 400)
    assert error["param"] == "thinking_token_budget"


@pytest.mark.parametrize(
    "thinking",
    [
        {"type": "enabled"},
        {"type": "enabled", "budget_tokens": 20},
        {"type": "enabled", "budget_tokens": 0},
        {"type": "enabled", "budget_tokens": "5"},
        {"type": "adaptive", "budget_tokens": 999},
    ],
)
def test_messages_name_their_own_field(client: TestClient, thinking: dict[str, Any]) -> None:
    body = CHAT | {"max_tokens": 20, "thinking": thinking}
    answer = client.post("/v1/messages", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert "thinking.budget_tokens" in answer.json()["error"]["message"]


def test_without_tags_there_is_nothing_to_limit(fuser: ScriptedFuser) -> None:
    settings = ServerSettings(reasoning_tags=None)
    with TestClient(create_app({"pair": ensemble()}, fuser, settings)) as client:
        for path, body in ((CHAT_PATH, CHAT), (TEXT_PATH, TEXT)):
            error = error_of(client.post(path, json=body | {"thinking_token_budget": 3}), 400)
            assert error["param"] == "thinking_token_budget"
            assert "reasoning_tags" in error["message"]
            assert client.post(path, json=body | {"thinking_token_budget": -1}).status_code == 200
        thinking = {"type": "enabled", "budget_tokens": 3}
        answer = client.post("/v1/messages", json=CHAT | {"max_tokens": 20, "thinking": thinking})
        assert answer.status_code == 400
        assert "thinking.budget_tokens" in answer.json()["error"]["message"]


def test_an_integral_float_is_a_budget_and_null_is_none(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda submission: says("<think>", "a", "</think>", "b")
    assert chat(client, thinking_token_budget=2.0)["choices"][0]["message"]["content"] == "b"
    assert fuser.last.prompt.constraints["a"].copy().forced() == []  # type: ignore[attr-defined]
    chat(client, thinking_token_budget=None)
    assert not fuser.last.prompt.constraints
