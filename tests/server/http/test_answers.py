"""What well-formed requests are answered with, in one piece."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from fusion.core import End
from server.http.app import create_app
from server.http.protocol import unsupported
from server.settings import ServerSettings
from tests.support.scripted_fuser import CONTEXT, END, ScriptedFuser, ensemble, says, token
from tests.support.served import Served
from tests.support.small_requests import HELLO, PROMPT_TOKENS, chat, complete


def test_chat_answer_has_the_shape_clients_read(client: TestClient) -> None:
    answer = chat(client)
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "pair"
    assert answer["system_fingerprint"] == "tutti-pair"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello world", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    assert answer["usage"] == {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": 3,
        "total_tokens": PROMPT_TOKENS + 3,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_completion_answer_has_the_shape_clients_read(client: TestClient) -> None:
    answer = complete(client)
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"] == "Hello world"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["prompt_tokens"] == len("hi") + 1


def test_sampling_fields_reach_the_fuser(client: TestClient, fuser: ScriptedFuser) -> None:
    chat(
        client,
        max_tokens=7,
        max_completion_tokens=8,
        min_tokens=2,
        temperature=0.3,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        presence_penalty=1,
        frequency_penalty=-1.5,
        repetition_penalty=1.1,
        logit_bias={"65": -100, "66": 2.5},
        seed=5,
        stop=["\n", "END"],
        stop_token_ids=[10],
        include_stop_str_in_output=True,
        ignore_eos=True,
        logprobs=True,
        top_logprobs=3,
    )
    sampling = fuser.last.sampling
    assert sampling.max_tokens == 8
    assert sampling.min_tokens == 2
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.3, 0.9, 40, 0.05)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1.5)
    assert sampling.repetition_penalty == 1.1
    assert sampling.logit_bias == {65: -100, 66: 2.5}
    assert sampling.seed == 5
    assert sampling.stop == ("\n", "END")
    assert sampling.stop_token_ids == (10,)
    assert sampling.include_stop
    assert sampling.ignore_eos
    assert sampling.logprobs == 3


def test_defaults(client: TestClient, fuser: ScriptedFuser) -> None:
    chat(client)
    assert fuser.last.sampling.max_tokens == CONTEXT - PROMPT_TOKENS
    assert fuser.last.sampling.temperature == 1
    assert fuser.last.sampling.seed is None
    complete(client)
    assert fuser.last.sampling.max_tokens == 16
    complete(client, prompt="x" * (CONTEXT - 5))
    assert fuser.last.sampling.max_tokens == 4


def test_null_means_left_out(client: TestClient, fuser: ScriptedFuser) -> None:
    chat(client, max_tokens=None, temperature=None, n=None, stop=None, seed=None, logit_bias=None, fusion=None)
    chat(client, stream=None, stream_options=None, logprobs=None, top_logprobs=None, user=None)
    for nothing in {}, {"include_usage": None}, {"include_usage": False}:
        chat(client, stream=False, stream_options=nothing)
    assert fuser.last.sampling.temperature == 1


@pytest.mark.parametrize(("given", "temperature"), [(0, 0), (1e-300, 0), (2, 2)])
def test_temperatures_too_small_to_divide_by_are_greedy(
    client: TestClient, fuser: ScriptedFuser, given: float, temperature: float
) -> None:
    chat(client, temperature=given)
    assert fuser.last.sampling.temperature == temperature


def test_an_empty_nucleus_is_its_best_token(client: TestClient, fuser: ScriptedFuser) -> None:
    chat(client, top_p=0, top_k=50)
    assert (fuser.last.sampling.top_k, fuser.last.sampling.top_p) == (1, 1)


def test_n_choices_have_their_own_seeds(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda submission: says(f"seed {submission.sampling.seed}")
    answer = chat(client, n=3, seed=2**63 - 1)
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert texts == [f"seed {2**63 - 1 + i}" for i in range(3)]
    assert answer["usage"]["prompt_tokens"] == PROMPT_TOKENS
    assert answer["usage"]["completion_tokens"] == 6


def test_a_negative_seed_is_a_seed(client: TestClient, fuser: ScriptedFuser) -> None:
    chat(client, seed=-1)
    assert fuser.last.sampling.seed == 2**64 - 1


@pytest.mark.parametrize(
    ("prompt", "pivot_ids"),
    [
        ("hi", [[104, 105, END]]),
        (["a", "b"], [[97, END], [98, END]]),
        ([104, 105], [[104, 105]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
    ],
)
def test_prompts_of_all_four_kinds(
    client: TestClient, fuser: ScriptedFuser, prompt: object, pivot_ids: list[list[int]]
) -> None:
    answer = complete(client, prompt=prompt)
    assert [submission.prompt.ids["a"] for submission in fuser.submissions] == pivot_ids
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(pivot_ids)))
    assert answer["usage"]["prompt_tokens"] == sum(map(len, pivot_ids))


def test_choices_of_several_prompts_follow_each_other(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda s: says(bytes(s.prompt.ids["a"][:-1]).decode() + str(s.sampling.seed))
    answer = complete(client, prompt=["p", "q"], n=2, seed=0)
    assert [choice["text"] for choice in answer["choices"]] == ["p0", "p1", "q0", "q1"]


def test_special_tokens_can_be_left_out(client: TestClient, fuser: ScriptedFuser) -> None:
    complete(client, add_special_tokens=False)
    assert fuser.last.prompt.ids["a"] == [104, 105]


def test_messages_reach_the_template_as_plain_strings(client: TestClient, fuser: ScriptedFuser) -> None:
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": None, "refusal": None},
    ]
    chat(client, messages=messages)
    assert bytes(fuser.last.prompt.ids["a"]).decode() == "system:be kind\nuser:one\ntwo\nassistant:\nanswer:"


def test_a_final_message_can_be_continued(client: TestClient, fuser: ScriptedFuser) -> None:
    chat(client, messages=[*HELLO, {"role": "assistant", "content": "Well"}], continue_final_message=True)
    assert bytes(fuser.last.prompt.ids["a"]).decode() == "user:hi\nassistant:Well\n"


def test_template_kwargs_are_handed_on(client: TestClient, fuser: ScriptedFuser) -> None:
    chat(client, chat_template_kwargs={"enable_thinking": False})
    assert "enable_thinking" in bytes(fuser.last.prompt.ids["a"]).decode()


def test_stop_reason_and_length(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda s: [End("a", (token(b"a"),), finish="stop", stop_reason="\n")]
    assert chat(client)["choices"][0]["stop_reason"] == "\n"
    fuser.script = lambda s: [End("a", (token(b"a"),), finish="length")]
    assert complete(client)["choices"][0]["finish_reason"] == "length"


def test_unknown_fields_are_accepted_and_logged_once(
    client: TestClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsupported, "_logged", set())
    caplog.set_level("INFO", logger="server")
    message = {"role": "user", "content": "hi", "mood": "good"}
    for _ in range(2):
        chat(client, messages=[message], made_up_field={"a": [1]}, verbosity="low")
    logged = [record.getMessage() for record in caplog.records if "unknown field" in record.getMessage()]
    assert len(logged) == 3
    for name in ("'made_up_field'", "'verbosity'", "'messages.mood'"):
        assert any(name in line for line in logged)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tools": None, "tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"modalities": ["text"]},
        {"skip_special_tokens": True},
        {"suffix": "", "prompt_logprobs": None},
    ],
)
def test_unbuilt_features_are_accepted_where_they_ask_for_nothing(client: TestClient, fields: dict) -> None:
    chat(client, **fields)


def test_the_server_can_limit_answers_to_chats_that_name_no_limit(
    serve: Callable[..., Served], fuser: ScriptedFuser
) -> None:
    with serve(default_max_tokens=5).http() as http:
        body = {"model": "pair", "messages": [{"role": "user", "content": "Hi"}]}
        assert http.post("/v1/chat/completions", json=body).status_code == 200
        assert fuser.last.sampling.max_tokens == 5
        assert http.post("/v1/chat/completions", json=body | {"max_tokens": 7}).status_code == 200
        assert fuser.last.sampling.max_tokens == 7


def test_the_fuser_lives_as_long_as_the_application(fuser: ScriptedFuser) -> None:
    with TestClient(create_app({"pair": ensemble()}, fuser, ServerSettings())):
        assert fuser.started
        assert not fuser.stopped
    assert fuser.stopped


def test_flows_are_clients_where_there_are_no_keys(client: TestClient, fuser: ScriptedFuser) -> None:
    chat(client)
    assert fuser.last.flow == "testclient"


def test_the_schema_describes_requests_and_errors(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    operation = schema["paths"]["/v1/chat/completions"]["post"]
    assert "422" not in operation["responses"]
    assert "temperature" in schema["components"]["schemas"]["ChatRequest"]["properties"]
