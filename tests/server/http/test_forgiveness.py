"""Small deviations that every other server lets pass, and answers that gateways and browsers look for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.http.app import create_app
from server.settings import ServerSettings
from tests.support.scripted_fuser import CONTEXT, ScriptedFuser, ensemble, says
from tests.support.small_requests import CHAT, CHAT_PATH, PROMPT_TOKENS, TEXT_PATH, chat, complete, error_of

Start = Callable[..., TestClient]
ORIGIN = "http://localhost:3000"


@pytest.fixture
def start(fuser: ScriptedFuser) -> Iterator[Start]:
    """Clients of servers with other settings."""
    running: list[TestClient] = []

    def start(**options: Any) -> TestClient:
        client = TestClient(create_app({"pair": ensemble()}, fuser, ServerSettings(**options)))
        running.append(client)
        return client.__enter__()

    yield start
    for client in running:
        client.__exit__(None, None, None)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_limit_beyond_the_room_is_shortened(client: TestClient, fuser: ScriptedFuser, field: str) -> None:
    chat(client, **{field: 10**30})
    assert fuser.last.sampling.max_tokens == CONTEXT - PROMPT_TOKENS


def test_a_limit_beyond_the_room_can_be_refused(start: Start) -> None:
    answer = start(long_max_tokens="refuse").post(CHAT_PATH, json=CHAT | {"max_tokens": CONTEXT})
    assert error_of(answer, 400)["code"] == "context_length_exceeded"


def test_a_prompt_too_long_is_worded_as_gateways_look_for_it(client: TestClient) -> None:
    messages = [{"role": "user", "content": "x" * CONTEXT}]
    error = error_of(client.post(CHAT_PATH, json=CHAT | {"messages": messages}), 400)
    assert f"This model's maximum context length is {CONTEXT} tokens" in error["message"]
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (CONTEXT, f"{CONTEXT} tokens > {CONTEXT - 1} maximum. This model's"),
        (10 * CONTEXT, f"{5 * CONTEXT} tokens > {CONTEXT} maximum. For member 'a'"),
    ],
)
def test_a_message_too_long_is_worded_as_claude_code_looks_for_it(
    client: TestClient, tokens: int, says: str
) -> None:
    content = "x" * (tokens - PROMPT_TOKENS + len("hi"))
    body = {"model": "pair", "max_tokens": 9, "messages": [{"role": "user", "content": content}]}
    answer = client.post("/v1/messages", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(f"prompt is too long: {says}")
    counted = client.post("/v1/messages/count_tokens", json=body).json()
    assert counted == {"input_tokens": tokens}, "by which a client decides what to leave out"


def test_whole_numbers_may_be_written_as_floats(client: TestClient, fuser: ScriptedFuser) -> None:
    chat(client, max_tokens=8.0, top_k=40.0, seed=1.0, n=1.0, stop_token_ids=[5.0])
    sampling = fuser.last.sampling
    assert (sampling.max_tokens, sampling.top_k, sampling.seed, sampling.stop_token_ids) == (8, 40, 1, (5,))


def test_no_tokens_with_echo_give_the_prompt_alone(client: TestClient) -> None:
    answer = complete(client, max_tokens=0, echo=True)
    assert answer["choices"][0]["text"] == "hi"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0


def test_no_tokens_without_echo_are_refused(client: TestClient) -> None:
    answer = client.post(TEXT_PATH, json={"model": "pair", "prompt": "hi", "max_tokens": 0})
    assert error_of(answer, 400)["param"] == "max_tokens"


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("//v1/chat/completions", CHAT_PATH),
        ("/v1//chat/completions", CHAT_PATH),
        ("/v1/chat/completions/", CHAT_PATH),
        ("/v1/v1/chat/completions", CHAT_PATH),
        ("/chat/completions", CHAT_PATH),
        ("/v1", CHAT_PATH),
        ("/v1/tokenize", "/tokenize"),
    ],
)
def test_a_404_names_the_right_path(client: TestClient, path: str, right: str) -> None:
    error = error_of(client.request("POST", "http://testserver" + path, json=CHAT), 404)
    assert right in error["message"]


def test_the_model_may_be_left_out_where_one_is_served(start: Start) -> None:
    answer = start().post(CHAT_PATH, json={"messages": CHAT["messages"]})
    assert answer.json()["model"] == "pair"


def test_the_model_may_not_be_left_out_where_several_are(client: TestClient) -> None:
    error = error_of(client.post(CHAT_PATH, json={"messages": CHAT["messages"]}), 400)
    assert error["param"] == "model"
    assert "other/one" in error["message"]


def test_an_alias_answers_under_its_own_name(start: Start) -> None:
    client = start(aliases={"gpt-4o": "pair"})
    assert client.post(CHAT_PATH, json=CHAT | {"model": "gpt-4o"}).json()["model"] == "gpt-4o"
    assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["pair", "gpt-4o"]


def test_a_browser_may_ask_before_it_shows_its_key(start: Start) -> None:
    client = start(cors_origins=(ORIGIN,), api_keys=("sk-right",))
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, x-stainless-os",
    }
    answer = client.options(CHAT_PATH, headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "x-stainless-os" in answer.headers["access-control-allow-headers"]
    refusal = client.post(CHAT_PATH, json=CHAT, headers={"Origin": ORIGIN})
    assert refusal.headers["access-control-allow-origin"] == ORIGIN
    error_of(refusal, 401)
    allowed = {"Origin": ORIGIN, "Authorization": "Bearer sk-right"}
    stream = client.post(CHAT_PATH, json=CHAT | {"stream": True}, headers=allowed)
    assert stream.headers["access-control-allow-origin"] == ORIGIN
    assert stream.headers["access-control-expose-headers"] == "x-request-id, request-id, retry-after"


def test_other_origins_may_not(start: Start) -> None:
    answer = start(cors_origins=(ORIGIN,)).post(CHAT_PATH, json=CHAT, headers={"Origin": "http://other"})
    assert "access-control-allow-origin" not in answer.headers


def test_usage_can_be_forced(start: Start) -> None:
    text = start(force_usage=True).post(CHAT_PATH, json=CHAT | {"stream": True}).text
    assert '"usage":{' in text.split("\n\n")[-3]


@pytest.mark.parametrize(("kind", "sent"), [("comment", ": keep-alive\ndata: "), ("chunk", '"choices":[]')])
def test_a_silent_stream_is_kept_alive(start: Start, fuser: ScriptedFuser, kind: str, sent: str) -> None:
    fuser.script = lambda submission: [0.6, *says("late")]
    client = start(keep_alive=kind, keep_alive_seconds=0.1)
    text = client.post(CHAT_PATH, json=CHAT | {"stream": True}).text
    assert sent in text
    assert ": keep-alive\n\n" not in text


def test_no_event_comes_before_a_response_is_created(start: Start, fuser: ScriptedFuser) -> None:
    """OpenAI's client gives up where another does."""
    fuser.script = lambda submission: [0.6, *says("late")]
    client = start(keep_alive="chunk", keep_alive_seconds=0.1)
    text = client.post("/v1/responses", json={"model": "pair", "input": "Hi", "stream": True}).text
    assert text.startswith(": keep-alive\n")
    assert "event: ping" not in text


def test_keeping_alive_can_be_switched_off(start: Start, fuser: ScriptedFuser) -> None:
    fuser.script = lambda submission: [0.2, *says("late")]
    text = start(keep_alive_seconds=0.0).post(CHAT_PATH, json=CHAT | {"stream": True}).text
    assert text.startswith("data: ")
