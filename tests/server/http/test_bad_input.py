"""What malformed requests are answered with: 4xx, an error object that names the field, never a crash."""

from __future__ import annotations

import asyncio
import copy
import json
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.testclient import TestClient

from alignment.errors import OverloadedError, UnavailableError
from fusion.core import Delta, End
from fusion.options import FusionParams, Guidance
from server.http.app import create_app
from server.http.protocol.chat import ChatRequest
from server.http.protocol.common import MAX_PARTS
from server.http.protocol.completions import CompletionRequest
from server.http.protocol.fusion import FusionFields, fusion_params
from server.http.protocol.tokens import DetokenizeRequest, TokenizeRequest
from server.http.protocol.unsupported import UNBUILT
from server.settings import ServerSettings
from tests.support.random_examples import at_least
from tests.support.scripted_fuser import CONTEXT, ScriptedFuser, ensemble, says, token
from tests.support.small_requests import CHAT, CHAT_PATH, TEXT, TEXT_PATH, error_of

OUT_OF_RANGE: list[tuple[str, Any]] = [
    *[("temperature", value) for value in (-0.1, 2.1, "0.5", [], True)],
    *[("top_p", value) for value in (-0.1, 1.1, "1")],
    *[("top_k", value) for value in (-2, 1.5, "1", 2**31)],
    *[("min_p", value) for value in (-0.1, 1.1)],
    *[("presence_penalty", value) for value in (-2.1, 2.1)],
    *[("frequency_penalty", value) for value in (-2.1, 2.1)],
    *[("repetition_penalty", value) for value in (0, -1, 11)],
    *[("max_tokens", value) for value in (-5, 1.5, "9", True)],
    *[("min_tokens", value) for value in (-1, CONTEXT, "1")],
    *[("n", value) for value in (0, 17, 1.5, "2")],
    *[("seed", value) for value in (2**63, 1.5, "1")],
    *[("stop", value) for value in ("", ["a", ""], [1], 7, ["x"] * 17, ["x"] * 10_000)],
    *[("stop_token_ids", value) for value in ([-1], [257], [1] * 17, 3)],
    *[("logit_bias", value) for value in ({"257": 1}, {"-1": 1}, {"a": 1}, {"²": 1}, {"1" * 5000: 1}, [])],
    *[("stream", value) for value in ("true", 1)],
    *[("stream_options", value) for value in ({"include_usage": True}, {"include_obfuscation": True})],
    *[("ignore_eos", value) for value in (1, "no")],
    *[("user", value) for value in (1, {})],
    *[("model", value) for value in (None, 1)],
]


@pytest.mark.parametrize("path", [CHAT_PATH, TEXT_PATH])
@pytest.mark.parametrize(("field", "value"), OUT_OF_RANGE, ids=lambda value: repr(value)[:40])
def test_wrong_types_and_ranges_are_refused_by_name(client: TestClient, path: str, field: str, value: Any) -> None:
    body = (CHAT if path == CHAT_PATH else TEXT) | {field: value}
    error = error_of(client.post(path, json=body), 400)
    assert error["param"] == field
    assert field in error["message"]
    assert error["type"] == "invalid_request_error"


NESTED: list[tuple[str, dict[str, Any], str]] = [
    (CHAT_PATH, {"logit_bias": {"1": 101}}, "logit_bias.1"),
    (CHAT_PATH, {"stop_token_ids": ["a"]}, "stop_token_ids[0]"),
    (CHAT_PATH, {"logprobs": 3}, "logprobs"),
    (CHAT_PATH, {"top_logprobs": 3}, "top_logprobs"),
    (CHAT_PATH, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    (CHAT_PATH, {"messages": []}, "messages"),
    (CHAT_PATH, {"messages": "hi"}, "messages"),
    (CHAT_PATH, {"messages": [3]}, "messages[0]"),
    (CHAT_PATH, {"messages": [{"content": "hi"}]}, "messages[0].role"),
    (CHAT_PATH, {"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
    (CHAT_PATH, {"messages": [{"role": "user"}]}, "messages[0].content"),
    (CHAT_PATH, {"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    (CHAT_PATH, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    (CHAT_PATH, {"messages": [{"role": "user", "content": "refuse this"}]}, "messages"),
    (CHAT_PATH, {"messages": [{"role": "user", "content": "x" * CONTEXT}]}, "messages"),
    (CHAT_PATH, {"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    (CHAT_PATH, {"continue_final_message": True}, "continue_final_message"),
    (CHAT_PATH, {"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs.tokenize"),
    (TEXT_PATH, {"logprobs": True}, "logprobs"),
    (TEXT_PATH, {"logprobs": 21}, "logprobs"),
    (TEXT_PATH, {"logprobs": -1}, "logprobs"),
    (TEXT_PATH, {"prompt": None}, "prompt"),
    (TEXT_PATH, {"prompt": []}, "prompt"),
    (TEXT_PATH, {"prompt": [[]]}, "prompt"),
    (TEXT_PATH, {"prompt": ["a", 1]}, "prompt"),
    (TEXT_PATH, {"prompt": [1.5]}, "prompt"),
    (TEXT_PATH, {"prompt": [True]}, "prompt"),
    (TEXT_PATH, {"prompt": [[1], "a"]}, "prompt"),
    (TEXT_PATH, {"prompt": [257]}, "prompt"),
    (TEXT_PATH, {"prompt": [-1]}, "prompt"),
    (TEXT_PATH, {"prompt": [10**30]}, "prompt"),
    (TEXT_PATH, {"prompt": ["a"] * 206}, "prompt"),
    (TEXT_PATH, {"n": 2, "best_of": 1}, "best_of"),
    (CHAT_PATH, {"fusion": []}, "fusion"),
    (CHAT_PATH, {"fusion": {"wieghts": {}}}, "fusion.wieghts"),
    (CHAT_PATH, {"fusion": {"weights": {"a": -1}}}, "fusion.weights.a"),
    (CHAT_PATH, {"fusion": {"weights": {"a": "much"}}}, "fusion.weights.a"),
    (CHAT_PATH, {"fusion": {"combine": "arithmetic", "weights": {"a": -1, "b": 0}}}, "fusion.weights"),
    (CHAT_PATH, {"fusion": {"combine": "arithmetic", "filter_top": 3}}, "fusion.filter_top"),
    (CHAT_PATH, {"fusion": {"combine": "arithmetic", "gate": "confident"}}, "fusion.gate"),
    (CHAT_PATH, {"fusion": {"contrast": {"amateur": "c"}}}, "fusion.contrast.amateur"),
    (CHAT_PATH, {"fusion": {"contrast": {"amateur": "a"}}}, "fusion.contrast.amateur"),
    (CHAT_PATH, {"fusion": {"contrast": {"amateur": "b", "alpha": 1.5}}}, "fusion.contrast.alpha"),
    (CHAT_PATH, {"fusion": {"contrast": {"amateur": "b", "gamma": 1}}}, "fusion.contrast.gamma"),
    (CHAT_PATH, {"fusion": {"contrast": {}}}, "fusion.contrast.amateur"),
    (CHAT_PATH, {"fusion": {"proxy": {"tuned": "b", "untuned": "b"}}}, "fusion.proxy.untuned"),
    (CHAT_PATH, {"fusion": {"mask": {"plausibility": -0.1}}}, "fusion.mask.plausibility"),
    (CHAT_PATH, {"fusion": {"mask": {"top_k": 5}}}, "fusion.mask"),
    (CHAT_PATH, {"fusion": {"combine": "arithmetic", "mask": {"top_k": 5, "nucleus": 0.5}}}, "fusion.mask"),
    (CHAT_PATH, {"fusion": {"guidance": {"scale": 1.5}}}, "fusion.guidance"),
    (CHAT_PATH, {"fusion": {"guidance": {"negative": 5}}}, "fusion.guidance.negative"),
    (
        CHAT_PATH,
        {"fusion": {"guidance": {"negative": [{"role": "x", "content": "y"}]}}},
        "fusion.guidance.negative",
    ),
    (
        CHAT_PATH,
        {"fusion": {"guidance": {"negative": [{"role": "user", "content": "refuse this"}]}}},
        "fusion.guidance.negative",
    ),
    (CHAT_PATH, {"fusion": {"guidance": {"negative": "x" * 70_000}}}, "fusion.guidance.negative"),
    (CHAT_PATH, {"fusion": {"guidance": {"without_context": True}}}, "fusion.guidance.without_context"),
    (CHAT_PATH, {"fusion": {"views": []}}, "fusion.views"),
    (CHAT_PATH, {"fusion": {"views": [{"context": ""}]}}, "fusion.views[0].context"),
    (CHAT_PATH, {"fusion": {"views": [{"weight": 1}]}}, "fusion.views[0].context"),
    (CHAT_PATH, {"fusion": {"views": [{"context": "x", "weight": -1}]}}, "fusion.views[0].weight"),
    (
        CHAT_PATH,
        {"fusion": {"views": [{"context": "x", "weight": 1}, {"context": "y"}]}},
        "fusion.views[1].weight",
    ),
    (CHAT_PATH, {"fusion": {"views": [{"context": "x" * CONTEXT}]}}, "fusion.views[0].context"),
    (CHAT_PATH, {"fusion": {"views": [{"context": "x"}] * 1000}}, "fusion.views"),
    (CHAT_PATH, {"fusion": {"views": [{"context": "x"}], "context_place": "end"}}, "fusion.context_place"),
    (CHAT_PATH, {"fusion": {"weights": "packllm"}}, "fusion.weights"),
    (CHAT_PATH, {"fusion": {"weights": 1}}, "fusion.weights"),
    (CHAT_PATH, {"fusion": {"weights": "top1", "weighting": {"method": "packllm-sim"}}}, "fusion.weights"),
    (CHAT_PATH, {"fusion": {"weights": {"a": 1}, "weighting": {"method": "packllm-sim"}}}, "fusion.weights"),
    (CHAT_PATH, {"fusion": {"weighting": 5}}, "fusion.weighting"),
    (CHAT_PATH, {"fusion": {"weighting": {"temperature": 0}}}, "fusion.weighting.temperature"),
    (CHAT_PATH, {"fusion": {"weighting": {"tau": 1}}}, "fusion.weighting.tau"),
    (CHAT_PATH, {"fusion": {"weights": {"a": 0, "b": 0}}}, "fusion.weights"),
    (CHAT_PATH, {"fusion": {"weights": "learned"}}, "fusion.weights"),
    (CHAT_PATH, {"fusion": {"weighting": {"method": "learned"}}}, "fusion.weighting.method"),
    (CHAT_PATH, {"fusion": {"weights": {}}}, "fusion.weights"),
    (CHAT_PATH, {"fusion": {"weights": {"c": 1}}}, "fusion.weights"),
    (CHAT_PATH, {"fusion": {"weights": {"b": 1}, "members": ["a"]}}, "fusion.weights"),
    (CHAT_PATH, {"fusion": {"combine": "sum"}}, "fusion.combine"),
    (CHAT_PATH, {"fusion": {"filter_top": 0}}, "fusion.filter_top"),
    (CHAT_PATH, {"fusion": {"members": []}}, "fusion.members"),
    (CHAT_PATH, {"fusion": {"members": ["b"]}}, "fusion.members"),
    (CHAT_PATH, {"fusion": {"members": ["a", "c"]}}, "fusion.members"),
    (CHAT_PATH, {"fusion": {"report": "yes"}}, "fusion.report"),
    ("/tokenize", {"prompt": None}, "prompt"),
    ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
    ("/tokenize", {"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
    ("/detokenize", {"tokens": [257]}, "tokens"),
    ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "tools": [3]}, "tools[0]"),
    ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
    (CHAT_PATH, {"structured_outputs": {"json_schema": {}}}, "structured_outputs.json_schema"),
    (CHAT_PATH, {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 5000}]}, "messages"),
    ("/v1/messages", {"max_tokens": 1, "messages": [{"role": "user", "content": "a"}] * 5000}, "messages"),
    ("/v1/responses", {"input": "a", "include": ["message.output_text.logprobs"]}, "include"),
    ("/v1/responses", {"input": "a", "top_logprobs": 2}, "top_logprobs"),
]


@pytest.mark.parametrize(("path", "fields", "param"), NESTED, ids=lambda value: repr(value)[:60])
def test_the_innermost_wrong_field_is_named(
    client: TestClient, path: str, fields: dict[str, Any], param: str
) -> None:
    base = {CHAT_PATH: CHAT, TEXT_PATH: TEXT}.get(path, {"model": "pair"})
    answer = client.post(path, json=base | fields)
    if path == "/v1/messages":  # its errors have no field
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith(param)
        return
    error = error_of(answer, 400)
    assert error["param"] == param
    assert not any(jargon in str(error["message"]) for jargon in ("Input", "after validation", "valid "))


def test_an_echo_that_the_ensembles_own_guidance_rules_out_is_named_by_its_field(fuser: ScriptedFuser) -> None:
    guided = replace(ensemble(), defaults=FusionParams(guidance=Guidance(1.5, negative="Be rude.")))
    asked = [
        (TEXT_PATH, {"echo": True, "logprobs": 1, "max_tokens": 0}, "echo"),
        (CHAT_PATH, {"prompt_logprobs": 1}, "prompt_logprobs"),
        (CHAT_PATH, {"prompt_logprobs": 1, "fusion": {"guidance": {"negative": "x"}}}, "fusion.guidance"),
    ]
    with TestClient(create_app({"pair": guided}, fuser, ServerSettings())) as client:
        for path, fields, param in asked:
            base = CHAT if path == CHAT_PATH else TEXT
            assert error_of(client.post(path, json=base | fields), 400)["param"] == param


def test_documents_are_a_mixture_unless_a_product_is_asked_for(fuser: ScriptedFuser) -> None:
    product = replace(ensemble(), defaults=FusionParams(combine="product"))
    documents = [{"context": "Rome."}, {"context": "Oslo."}]
    asked = [
        ({"views": documents}, "mixture"),
        ({"views": documents, "combine": "product"}, "product"),
        ({"views": documents[:1]}, "product"),
        ({}, "product"),
    ]
    with TestClient(create_app({"pair": product}, fuser, ServerSettings())) as client:
        for fusion, combine in asked:
            assert client.post(CHAT_PATH, json=CHAT | {"fusion": fusion}).status_code == 200
            assert fuser.last.fusion.combine == combine


def test_messages_say_what_is_allowed(client: TestClient) -> None:
    def message(fields: dict[str, Any]) -> str:
        return str(error_of(client.post(CHAT_PATH, json=CHAT | fields), 400)["message"])

    assert message({"temperature": 3}) == "temperature should be less than or equal to 2, not 3."
    assert message({"max_tokens": 1.5}) == "max_tokens should be a whole number, not 1.5."
    assert message({"stream": "yes"}) == "stream should be true or false, not 'yes'."
    assert message({"messages": []}) == "messages should not be empty."
    assert message({"messages": "Hello"}) == "messages should be a list, not 'Hello'."
    assert message({"model": 5}) == "model should be text, not 5."
    assert (
        message({"fusion": {"combine": "sum"}})
        == "fusion.combine should be 'mixture', 'product' or 'arithmetic', not 'sum'."
    )
    known = (
        "mask, contrast, proxy, guidance, members, weights, weighting, combine, filter_top, renormalize, "
        "unmapped, guard, confidence, report, draft, gate, threshold, margin, views, context_place"
    )
    assert known in message({"fusion": {"x": 1}})
    assert "the members are a, b" in message({"fusion": {"members": ["c"]}})
    long = message({"messages": [{"role": "user", "content": "x" * CONTEXT}]})
    assert "member 'a'" in long
    assert str(CONTEXT) in long
    assert "at most 256 bytes" in message({"bad_words": ["é" * 129]})
    assert "at most 1024" in message({"logit_bias": {str(token): 1 for token in range(1025)}})


@pytest.mark.parametrize(
    ("path", "field", "item"),
    [
        (CHAT_PATH, "stop_token_ids", ""),
        (CHAT_PATH, "allowed_token_ids", None),
        (CHAT_PATH, "bad_words", 0),
        (CHAT_PATH, "guided_choice", 0),
        (CHAT_PATH, "stop", 0),
        ("/v1/messages", "messages", {}),
        ("/v1/messages", "stop_sequences", 0),
        ("/v1/responses", "input", 0),
        ("/v1/responses", "tools", 0),
        ("/detokenize", "tokens", ""),
    ],
)
def test_of_many_wrong_items_one_is_told(client: TestClient, path: str, field: str, item: Any) -> None:
    """A complaint for each of hundreds of thousands would take seconds in which nobody is served."""
    route = next(route for route in client.app.routes if getattr(route, "path", None) == path)  # type: ignore[attr-defined]
    model: Any = route.body_field.field_info.annotation
    with pytest.raises(ValidationError) as refused:
        model.model_validate({"max_tokens": 1, "prompt": "a", field: [item] * 1000})
    assert sum(error["loc"][0] == field for error in refused.value.errors()) <= 2  # a list may be of two kinds


def test_choices_that_could_never_wait_are_refused_for_good(fuser: ScriptedFuser) -> None:
    with TestClient(create_app({"pair": ensemble()}, fuser, ServerSettings(max_waiting=8))) as client:
        assert "at most 7" in error_of(client.post(CHAT_PATH, json=CHAT | {"n": 8}), 400)["message"]


def test_a_client_that_leaves_while_it_sends_is_no_failure(client: TestClient) -> None:
    """Not an error of the server, which would ring an alarm."""
    sent = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    statuses = []

    async def receive() -> Any:
        return next(sent)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": CHAT_PATH, "headers": headers, "query_string": b""}
    asyncio.run(client.app(scope | {"http_version": "1.1", "scheme": "http"}, receive, send))  # type: ignore[arg-type]
    assert statuses == [499]


def test_more_sequences_than_can_ever_wait_are_refused_for_good(client: TestClient) -> None:
    """With 429 a client would try again for ever. The sentence names the setting behind the limit."""
    body = TEXT | {"prompt": ["a"] * 205, "n": 2}
    told = error_of(client.post(TEXT_PATH, json=body), 400)["message"]
    assert "410 sequences; send at most 205" in told
    assert "server.max_waiting" in told
    body = TEXT | {"prompt": ["a"] * 206}
    assert "server.max_waiting" in error_of(client.post(TEXT_PATH, json=body), 400)["message"]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT_PATH, {"functions": [{"name": "f"}]}, "functions"),
        (CHAT_PATH, {"logprob_token_ids": [0]}, "logprob_token_ids"),
        (CHAT_PATH, {"modalities": ["text", "audio"]}, "modalities"),
        (TEXT_PATH, {"suffix": "end"}, "suffix"),
        (TEXT_PATH, {"best_of": 2}, "best_of"),
        (TEXT_PATH, {"skip_special_tokens": False}, "skip_special_tokens"),
    ],
)
def test_what_is_not_built_says_so(client: TestClient, path: str, fields: dict[str, Any], param: str) -> None:
    base = CHAT if path == CHAT_PATH else TEXT
    error = error_of(client.post(path, json=base | fields), 400)
    assert error["code"] == "not_implemented"
    assert error["param"] == param
    assert "not supported yet" in error["message"]


def test_images_are_not_built_in_any_api(client: TestClient) -> None:
    def refused(path: str, list_name: str, image: dict[str, Any]) -> Any:
        body = {"model": "pair", "max_tokens": 9, list_name: [{"role": "user", "content": [image]}]}
        return client.post(path, json=body)

    chat = error_of(refused(CHAT_PATH, "messages", {"type": "image_url", "image_url": {"url": "data:"}}), 400)
    response = error_of(refused("/v1/responses", "input", {"type": "input_image"}), 400)
    assert chat["message"] == "messages[0].content[0] is of type 'image_url', but only text is understood."
    assert chat["code"] == response["code"] == "not_implemented"
    message = refused("/v1/messages", "messages", {"type": "image"})
    assert message.status_code == 400
    assert "is of type 'image'" in message.json()["error"]["message"]  # Anthropic's errors have no code


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model": "pair"} x',
        b"\xff\xfe",
        b'{"model": "pair", "prompt": "\xff"}',
        b'{"model": "pair", "prompt": "\\ud800"}',
        b'{"model": "pair", "prompt": "a", "temperature": NaN}',
        b'{"model": "pair", "prompt": "a", "temperature": Infinity}',
        b'{"model": "pair", "prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"x":' * 100_000,
        b'{"model": "pair", "prompt": ' + b"[" * 500 + b"]" * 500 + b"}",
        b"null",
        b"[]",
        b'"text"',
        b"3",
    ],
    ids=lambda body: repr(body[:60]),
)
@pytest.mark.parametrize("path", [CHAT_PATH, TEXT_PATH, "/tokenize", "/detokenize"])
def test_bodies_that_are_no_json_object(client: TestClient, path: str, body: bytes) -> None:
    error_of(client.post(path, content=body, headers={"content-type": "application/json"}), 400)


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize(
    "field", ['"temperature": %s', '"logit_bias": {"1": %s}', '"fusion": {"weights": {"a": %s}}']
)
def test_numbers_that_are_none(client: TestClient, field: str, literal: str) -> None:
    body = '{"model": "pair", "prompt": "a", ' + field % literal + "}"
    error_of(client.post(TEXT_PATH, content=body, headers={"content-type": "application/json"}), 400)


def test_other_content_types_are_told_what_to_send(client: TestClient) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    error = error_of(client.post(TEXT_PATH, content=json.dumps(TEXT), headers=form), 400)
    assert "application/json" in error["message"]
    assert client.post(TEXT_PATH, content=json.dumps(TEXT)).status_code == 200  # none given


def test_pages_of_other_origins_cannot_ask_unasked(client: TestClient, fuser: ScriptedFuser) -> None:
    """Browsers send a body without a type for any page; programs may leave it out."""
    body = json.dumps(CHAT).encode()
    for header in ("origin", "sec-fetch-site"):
        error = error_of(client.post(CHAT_PATH, content=body, headers={header: "cross-site"}), 400)
        assert "application/json" in error["message"]
    assert not fuser.submissions
    assert client.post(CHAT_PATH, content=body).status_code == 200
    assert client.get("/tokenizer_info", headers={"sec-fetch-site": "same-origin"}).status_code == 200
    typed = {"origin": "http://localhost", "content-type": "application/json"}
    assert client.post(CHAT_PATH, content=body, headers=typed).status_code == 200


def test_calls_and_messages_are_bounded_wherever_they_stand(client: TestClient) -> None:
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    item = {"type": "function_call", "call_id": "x", "name": "f", "arguments": "{}"}
    empty = {"role": "user", "content": ""}
    message = {"role": "assistant", "tool_calls": [call] * (MAX_PARTS + 1)}
    assert error_of(client.post(CHAT_PATH, json=CHAT | {"messages": [message]}), 400)["param"] == "messages"
    assert (
        error_of(client.post("/v1/responses", json={"input": [item] * (MAX_PARTS + 1)}), 400)["param"] == "input"
    )
    fusion = {"guidance": {"scale": 2, "negative": [empty] * (MAX_PARTS + 1)}}
    error = error_of(client.post(CHAT_PATH, json=CHAT | {"fusion": fusion}), 400)
    assert error["param"].startswith("fusion.guidance")


def test_paths_methods_and_models_that_are_not_there(client: TestClient) -> None:
    error_of(client.get("/nowhere"), 404)
    error_of(client.get("/v1/models/"), 404)
    error_of(client.get("/v1/models/nobody"), 404)
    error_of(client.get(CHAT_PATH), 405)
    assert client.get(CHAT_PATH).headers["allow"] == "POST"
    error = error_of(client.post(CHAT_PATH, json=CHAT | {"model": "gpt-9"}), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "pair" in error["message"]
    named = client.post(CHAT_PATH, json=CHAT | {"model": "pair"}).json()
    assert named["model"] == "pair"
    assert error_of(client.post(CHAT_PATH, json=CHAT | {"model": ""}), 400)["param"] == "model"  # as if left out


def test_a_full_line_is_429_with_retry_after(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.refuse = (0, OverloadedError("Too many sequences are waiting.", retry_after=7))
    answer = client.post(CHAT_PATH, json=CHAT)
    assert error_of(answer, 429)["type"] == "rate_limit_error"
    assert answer.headers["retry-after"] == "7"


def test_a_member_that_is_being_started_anew_is_503_with_retry_after(
    client: TestClient, fuser: ScriptedFuser
) -> None:
    fuser.refuse = (0, UnavailableError("Member 'b' is down.", retry_after=4))
    answer = client.post(CHAT_PATH, json=CHAT)
    assert error_of(answer, 503)["message"] == "Member 'b' is down."
    assert answer.headers["retry-after"] == "4"
    fuser.refuse = (0, UnavailableError("The server is shutting down."))
    assert "retry-after" not in client.post(CHAT_PATH, json=CHAT).headers


def test_choices_are_admitted_together_or_not_at_all(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda submission: [60.0]
    fuser.refuse = (2, OverloadedError("Too many sequences are waiting."))
    error_of(client.post(CHAT_PATH, json=CHAT | {"n": 3}), 429)
    assert [submission.cancelled.is_set() for submission in fuser.submissions] == [True, True]


@pytest.mark.parametrize("stream", [False, True])
def test_failures_before_the_first_token_have_a_status(
    client: TestClient, fuser: ScriptedFuser, stream: bool
) -> None:
    fuser.script = lambda submission: [0.05, End("", error=UnavailableError("Member 'b' failed."))]
    error = error_of(client.post(CHAT_PATH, json=CHAT | {"stream": stream}), 503)
    assert "Member 'b'" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_unexpected_failures_keep_their_details_to_the_log(
    client: TestClient, fuser: ScriptedFuser, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    fuser.script = lambda submission: [End("", error=KeyError("secret"))]
    answer = client.post(CHAT_PATH, json=CHAT | {"stream": stream})
    error = error_of(answer, 500)
    assert error["type"] == "server_error"
    assert "secret" not in answer.text
    assert "secret" in caplog.text


def test_a_crash_is_answered_and_logged_under_its_request_id(
    client: TestClient, fuser: ScriptedFuser, caplog: pytest.LogCaptureFixture
) -> None:
    fuser.refuse = (0, ZeroDivisionError("secret"))
    answer = client.post(CHAT_PATH, json=CHAT, headers={"x-request-id": "mine"})
    error_of(answer, 500)
    assert answer.headers["x-request-id"] == "mine"
    assert "request mine" in caplog.text


def test_a_failing_choice_stops_the_others(client: TestClient, fuser: ScriptedFuser) -> None:
    failing = [End("", error=UnavailableError("Member 'b' failed."))]
    fuser.script = lambda submission: failing if submission.sampling.seed == 1 else [60.0]
    error_of(client.post(CHAT_PATH, json=CHAT | {"n": 3, "seed": 0}), 503)
    assert [s.cancelled.is_set() for s in fuser.submissions] == [True, False, True]


def test_requests_over_their_time_are_503_and_stopped(fuser: ScriptedFuser) -> None:
    fuser.script = lambda submission: [60.0]
    options = ServerSettings(request_seconds=0.1)
    with TestClient(create_app({"pair": ensemble()}, fuser, options)) as client:
        answer = client.post(CHAT_PATH, json=CHAT)
    assert "0.1 seconds" in error_of(answer, 503)["message"]
    assert answer.headers["x-should-retry"] == "false"  # it would take as long again, twice
    assert fuser.last.cancelled.is_set()


keys = st.text(max_size=8) | st.sampled_from(["role", "content", "type", "text", "weights", "1"])
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["pair", "user", "text", "a", "b", "mixture"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
SAMPLING = {"max_tokens": 4, "temperature": 0.5, "n": 2, "stop": ["x", "y"], "seed": 1, "logit_bias": {"7": 1.0}}
FUSION = {"weights": {"a": 1.0, "b": 2.0}, "combine": "mixture", "filter_top": 5, "members": ["a", "b"]}
PARTS = [{"type": "text", "text": "hi"}, {"type": "text", "text": "ho"}]
MESSAGES = [{"role": "system", "content": "be"}, {"role": "user", "content": PARTS}]
TOKENS = {"add_generation_prompt": True, "continue_final_message": False, "return_token_strs": True}
BODIES: dict[str, dict[str, Any]] = {
    CHAT_PATH: {"model": "pair", "messages": MESSAGES, "logprobs": True, "top_logprobs": 2, "fusion": FUSION},
    TEXT_PATH: {"model": "pair", "prompt": ["hi", "ho"], "logprobs": 2, "fusion": FUSION} | SAMPLING,
    "/tokenize": {"model": "pair", "messages": MESSAGES, "chat_template_kwargs": {"k": 1}} | TOKENS,
    "/detokenize": {"model": "pair", "tokens": [104, 105]},
}
BODIES[CHAT_PATH] |= SAMPLING
FIELDS: dict[str, set[str]] = {
    CHAT_PATH: {*ChatRequest.model_fields, *UNBUILT},
    TEXT_PATH: {*CompletionRequest.model_fields, *UNBUILT},
    "/tokenize": {*TokenizeRequest.model_fields, *UNBUILT},
    "/detokenize": {*DetokenizeRequest.model_fields, *UNBUILT},
}


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container within a body, with each of its keys."""
    if not isinstance(value, dict | list):
        return []
    keys = [*value] if isinstance(value, dict) else [*range(len(value))]
    return [*((value, key) for key in keys), *(place for key in keys for place in places(value[key]))]


@st.composite
def changed(draw: st.DrawFn, path: str) -> dict[str, Any]:
    """A body that is served, but for a change or two: another value, a field more or a field less."""
    body = copy.deepcopy(BODIES[path])
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        container, key = draw(st.sampled_from([*places(body), (body, None)]))
        if key is None:
            body[draw(st.sampled_from(sorted(FIELDS[path] - {"stream"})))] = draw(json_values)
        elif draw(st.booleans()):
            container[key] = draw(json_values)
        else:
            del container[key]
    return body


@pytest.fixture(scope="module")
def hardened() -> Any:
    """One server for all of hypothesis's examples."""
    fuser = ScriptedFuser()
    fuser.script = lambda submission: says("ok")
    with TestClient(create_app({"pair": ensemble()}, fuser, ServerSettings())) as client:
        yield client


def all_finite(body: dict[str, Any]) -> bool:
    try:
        return bool(json.dumps(body, allow_nan=False))
    except ValueError:
        return False


@pytest.mark.parametrize("path", BODIES)
def test_no_json_gets_a_5xx(hardened: TestClient, path: str) -> None:
    assert hardened.post(path, json=BODIES[path]).status_code == 200
    answers: Counter[int] = Counter()

    @given(changed(path))
    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    def send(body: dict[str, Any]) -> None:
        content = json.dumps(body, ensure_ascii=True)
        answer = hardened.post(path, content=content, headers={"content-type": "application/json"})
        answers[answer.status_code] += 1
        if answer.status_code != 200:
            error_of(answer, answer.status_code)
        assert answer.status_code in (200, 400, 404)
        if not all_finite(body):
            assert answer.status_code == 400

    send()
    assert answers[200] >= at_least(5)
    assert answers[400] >= at_least(15)


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_no_bytes_get_a_5xx(hardened: TestClient, body: bytes) -> None:
    answer = hardened.post(TEXT_PATH, content=body, headers={"content-type": "application/json"})
    error_of(answer, 400)


weights = st.floats(min_value=0, allow_infinity=False, allow_nan=False)


@given(st.dictionaries(st.sampled_from(["a", "b"]), weights, min_size=1).filter(lambda w: any(w.values())))
@settings(max_examples=200, deadline=None)
def test_any_weights_are_normalised(asked: dict[str, float]) -> None:
    params: FusionParams = fusion_params(FusionFields(weights=asked), ensemble(), 4096)
    assert params.weights is not None
    assert math.isclose(sum(params.weights.values()), 1)
    for name, weight in asked.items():
        expected = weight / max(asked.values()) * max(params.weights.values())
        assert math.isclose(params.weights[name], expected, rel_tol=1e-9, abs_tol=1e-300)


def test_text_that_was_held_back_is_not_lost(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda s: [Delta("", (token(b"a"),)), End("ab", (token(b"b"),), finish="length")]
    assert client.post(TEXT_PATH, json=TEXT).json()["choices"][0]["text"] == "ab"
