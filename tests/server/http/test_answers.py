"""What well-formed requests are answered with, in one piece."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from fusion.core import Update
from fusion.options import FusionParams
from server import __version__
from server.http.app import create_app
from server.settings import ServerSettings
from tests.server.conftest import Served
from tests.support.scripted_fuser import CONTEXT, END, ScriptedFuser, ensemble, report, says, token

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
        {"role": "tool", "content": "42", "tool_call_id": "x"},
    ]
    chat(client, messages=messages)
    assert bytes(fuser.last.prompt.ids["a"]).decode() == (
        "system:be kind\nuser:one\ntwo\nassistant:\ntool:42\nanswer:"
    )


def test_a_final_message_can_be_continued(client: TestClient, fuser: ScriptedFuser) -> None:
    chat(client, messages=[*HELLO, {"role": "assistant", "content": "Well"}], continue_final_message=True)
    assert bytes(fuser.last.prompt.ids["a"]).decode() == "user:hi\nassistant:Well\n"


def test_template_kwargs_are_handed_on(client: TestClient, fuser: ScriptedFuser) -> None:
    chat(client, chat_template_kwargs={"enable_thinking": False})
    assert "enable_thinking" in bytes(fuser.last.prompt.ids["a"]).decode()


def test_stop_reason_and_length(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda s: [Update("a", (token(b"a"),), finish="stop", stop_reason="\n")]
    assert chat(client)["choices"][0]["stop_reason"] == "\n"
    fuser.script = lambda s: [Update("a", (token(b"a"),), finish="length")]
    assert complete(client)["choices"][0]["finish_reason"] == "length"


def test_unknown_fields_are_accepted_and_logged_once(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="server")
    message = {"role": "user", "content": "hi", "mood": "good"}
    for _ in range(2):
        chat(client, messages=[message], made_up_field={"a": [1]}, reasoning_effort="low")
    logged = [record.getMessage() for record in caplog.records if "unknown field" in record.getMessage()]
    assert len(logged) == 3
    for name in ("'made_up_field'", "'reasoning_effort'", "'messages.mood'"):
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


def test_models_are_listed_and_found(client: TestClient) -> None:
    listed = client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["pair", "other/one"]
    one = client.get("/v1/models/other/one").json()
    assert one == listed["data"][1]
    assert one["object"] == "model"
    assert one["max_model_len"] == CONTEXT
    assert one["fusion"] == {"pivot": "a", "members": ["a", "b"]}


def test_health_and_version(client: TestClient) -> None:
    assert client.get("/health").status_code == 200
    assert client.head("/health").status_code == 200
    assert client.get("/version").json() == {"version": __version__}


def test_health_is_503_once_the_decoding_loop_has_ended(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.stop()
    answer = client.get("/health")
    assert answer.status_code == 503
    assert "restart" in answer.json()["error"]["message"]


def test_the_server_can_limit_answers_to_chats_that_name_no_limit(
    serve: Callable[..., Served], fuser: ScriptedFuser
) -> None:
    with serve(default_max_tokens=5).http() as http:
        body = {"model": "pair", "messages": [{"role": "user", "content": "Hi"}]}
        assert http.post("/v1/chat/completions", json=body).status_code == 200
        assert fuser.last.sampling.max_tokens == 5
        assert http.post("/v1/chat/completions", json=body | {"max_tokens": 7}).status_code == 200
        assert fuser.last.sampling.max_tokens == 7


def test_tokenize_and_detokenize_use_the_pivot(client: TestClient) -> None:
    answer = client.post("/tokenize", json={"prompt": "é"}).json()
    assert answer == {"count": 3, "max_model_len": CONTEXT, "tokens": [0xC3, 0xA9, END], "token_strs": None}
    bare = {"model": "pair", "prompt": "é", "add_special_tokens": False, "return_token_strs": True}
    assert client.post("/tokenize", json=bare).json()["token_strs"] == ["<C3>", "<A9>"]
    rendered = client.post("/tokenize", json={"model": "pair", "messages": HELLO}).json()
    assert rendered["count"] == PROMPT_TOKENS
    assert client.post("/detokenize", json={"tokens": [104, 105, END]}).json() == {"prompt": "hi<end>"}


def test_tokenizer_info_is_what_evaluation_harnesses_need(client: TestClient) -> None:
    info = client.get("/tokenizer_info").json()
    assert info["eos_token"] == "<end>"
    assert info["chat_template"] == "{{ messages }}"
    assert client.get("/tokenizer_info", params={"model": "nobody"}).status_code == 404


def test_fusion_of_a_request_overrides_the_defaults(fuser: ScriptedFuser) -> None:
    defaults = FusionParams(weights={"a": 0.25, "b": 0.75}, filter_top=20)
    with TestClient(create_app({"pair": ensemble(defaults=defaults)}, fuser, ServerSettings())) as client:
        chat(client)
        assert fuser.last.fusion == defaults
        chat(client, fusion={"weights": {"a": 3, "b": 1}, "combine": "product"})
        assert fuser.last.fusion == FusionParams(weights={"a": 0.75, "b": 0.25}, combine="product", filter_top=20)
        chat(client, fusion={"filter_top": None})
        assert fuser.last.fusion.filter_top is None
        chat(client, fusion={"members": ["a"]})
        assert fuser.last.fusion == FusionParams(members=("a",), weights={"a": 1.0}, filter_top=20)
        chat(client, fusion={"weights": {"b": 1e308}})
        assert fuser.last.fusion.weights == {"a": 0, "b": 1}
        chat(client, fusion={"weights": {"a": 1e308, "b": 1e308}})
        assert fuser.last.fusion.weights == {"a": 0.5, "b": 0.5}


def test_a_report_lies_in_each_choice(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda s: [
        Update("a", (token(b"a"),), rounds=(report(97),)),
        Update(
            "",
            (token(b""),),
            finish="stop",
            rounds=(report(END),),
            departed={"b": "it failed"},
            returned={"b": 1},
        ),
    ]
    in_chat = chat(client, n=2, fusion={"report": True})["choices"]
    in_text = complete(client, fusion={"report": True})["choices"]
    for choice in (*in_chat, *in_text):
        told = choice["fusion"]
        assert (told["pivot"], told["members"], told["departed"]) == ("a", ["a", "b"], {"b": "it failed"})
        assert told["returned"] == {"b": 1}
        assert [entry["token"] for entry in told["rounds"]] == [97, END]
        assert told["rounds"][0]["contribution"] == {"a": 0.75, "b": 0.25}
        assert told["rounds"][0]["rolled_back"] == {"a": 0, "b": 1}
    assert "fusion" not in chat(client)["choices"][0]


SPLIT = [
    Update("", (token(b"\xe2", -0.25, ((b"\xe2", -0.25), (b"a", float("-inf")))),)),
    Update("", (token(b"\x82"),)),
    Update("€", (token(b"\xac"),)),
    Update("!", (token(b"!", -3.0, ((b"?", -0.1),)),)),
    Update("", (token(b""),), finish="stop"),
]


def test_chat_logprobs(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda s: SPLIT
    entries = chat(client, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert bytes(byte for entry in entries for byte in entry["bytes"] or []).decode() == "€!"
    assert entries[0]["token"] == "\\xe2"
    assert entries[0]["top_logprobs"][1] == {"token": "a", "logprob": -9999.0, "bytes": [97]}
    assert entries[3]["token"] == "!"
    assert entries[3]["logprob"] == -3.0
    assert (entries[4]["token"], entries[4]["bytes"]) == ("<end>", None)


def test_completion_logprobs(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda s: SPLIT
    told = complete(client, logprobs=1)["choices"][0]["logprobs"]
    assert told["tokens"] == ["bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "!", "<end>"]
    assert told["text_offset"] == [0, 0, 0, 1, 2]
    assert told["token_logprobs"][0] == -0.25
    assert told["top_logprobs"][0] == {"bytes:\\xe2": -0.25, "a": -9999.0}
    assert told["top_logprobs"][3] == {"?": -0.1, "!": -3.0}


ECHOED = [
    Update("!", (token(b"!", -3.0),), prompt=(token(b"h", float("nan")), token(b"i", -1.5, ((b"o", -0.5),)))),
    Update("", (token(b""),), finish="stop"),
]


@pytest.mark.parametrize("prompt", ["hi", [104, 105], ["hi"], [[104, 105]]])
def test_an_echo_begins_with_the_prompt(client: TestClient, fuser: ScriptedFuser, prompt: object) -> None:
    fuser.script = lambda s: ECHOED
    [choice] = complete(client, prompt=prompt, echo=True, logprobs=1)["choices"]
    assert fuser.last.sampling.prompt_logprobs == 1
    assert fuser.last.prompt.located is not None
    told = choice["logprobs"]
    assert choice["text"] == "hi!"
    assert told["tokens"] == ["h", "i", "!", "<end>"]
    assert told["token_logprobs"][:3] == [None, -1.5, -3.0]
    assert told["top_logprobs"][:2] == [None, {"o": -0.5, "i": -1.5}]
    assert told["text_offset"] == [0, 1, 2, 3]


def test_an_echo_without_logprobs_costs_nothing(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda s: [Update("!", (token(b"!"),), finish="length")]
    choices = complete(client, prompt=["hi", "ho"], n=2, echo=True)["choices"]
    assert [choice["text"] for choice in choices] == ["hi!", "hi!", "ho!", "ho!"]
    assert fuser.last.sampling.prompt_logprobs is None
    assert fuser.last.prompt.located is None


def test_an_echo_streams(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda s: ECHOED
    body = {"model": "pair", "prompt": "hi", "echo": True, "logprobs": 0, "stream": True}
    lines = client.post("/v1/completions", json=body).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == "hi!"
    assert chunks[0]["choices"][0]["logprobs"]["token_logprobs"] == [None, -1.5, -3.0]


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
