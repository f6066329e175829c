"""What vLLM's clients ask for beyond OpenAI's fields: honoured, or refused by name; never ignored."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from alignment.text.room import Room
from fusion.core import Delta, End
from fusion.ensemble import View
from fusion.reports import Account
from server.http.app import create_app
from server.settings import ServerSettings
from tests.support.scripted_fuser import CONTEXT, ScriptedFuser, ensemble, says, token
from tests.support.small_requests import CHAT, CHAT_PATH, TEXT, TEXT_PATH, chat, complete, error_of

PROMPT = "user:hi\nanswer:"


def streamed(client: TestClient, path: str, **fields: Any) -> list[dict[str, Any]]:
    body = (CHAT if path == CHAT_PATH else TEXT) | {"stream": True} | fields
    lines = client.post(path, json=body).text.split("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


@pytest.mark.parametrize(
    "fields",
    [
        {"logprob_token_ids": [1]},
        {"echo": True},
        {"add_special_tokens": True},
        {"watermarking": {"seed": 1}},
        {"repetition_detection": {"max_pattern_size": 4}},
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(client: TestClient, fields: dict[str, Any]) -> None:
    error = error_of(client.post(CHAT_PATH, json=CHAT | fields), 400)
    assert error["code"] == "not_implemented"
    assert error["param"] == next(iter(fields))


@pytest.mark.parametrize("fields", [{"echo": False}, {"add_special_tokens": False}, {"logprob_token_ids": None}])
def test_asking_for_nothing_is_no_reason_to_refuse(client: TestClient, fields: dict[str, Any]) -> None:
    assert chat(client, **fields)["choices"]


def test_ids_of_prompt_and_answer_are_returned(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda submission: says("o", "k")
    answer = chat(client, return_token_ids=True)
    assert answer["prompt_token_ids"] == list(PROMPT.encode())
    assert answer["choices"][0]["token_ids"] == [*b"ok", 256]
    choice = complete(client, return_token_ids=True)["choices"][0]
    assert choice["prompt_token_ids"] == [*b"hi", 256]
    assert choice["token_ids"] == [*b"ok", 256]
    assert "token_ids" not in complete(client)["choices"][0]


def test_a_stream_has_the_prompts_ids_once_and_the_answers_as_they_come(
    client: TestClient, fuser: ScriptedFuser
) -> None:
    fuser.script = lambda submission: says("o", "k")
    chunks = streamed(client, CHAT_PATH, return_token_ids=True)
    assert [chunk["prompt_token_ids"] for chunk in chunks if "prompt_token_ids" in chunk] == [
        list(PROMPT.encode())
    ]
    ids = [id for chunk in chunks for choice in chunk["choices"] for id in choice.get("token_ids") or []]
    assert ids == [*b"ok", 256]
    told = [chunk["choices"][0] for chunk in streamed(client, TEXT_PATH, return_token_ids=True)]
    assert [choice["prompt_token_ids"] for choice in told if "prompt_token_ids" in choice] == [[*b"hi", 256]]
    assert [id for choice in told for id in choice.get("token_ids") or []] == [*b"ok", 256]


def test_the_rendered_prompt_is_returned(client: TestClient) -> None:
    assert chat(client, return_prompt_text=True)["prompt_text"] == PROMPT
    chunks = streamed(client, CHAT_PATH, return_prompt_text=True)
    assert [chunk["prompt_text"] for chunk in chunks if "prompt_text" in chunk] == [PROMPT]


def test_the_prompt_is_scored_without_an_echo(client: TestClient, fuser: ScriptedFuser) -> None:
    scored = (token(b"h", float("nan")), token(b"i", -1.5, ((b"o", -0.25), (b"i", -1.5), (b"a", -4.0))))

    def script(submission: Any) -> Any:
        assert submission.sampling.prompt_logprobs == 2
        first, *rest = says("ok")
        return [type(first)(first.text, first.tokens, None, scored), *rest]  # type: ignore[union-attr]

    fuser.script = script
    expected = [
        None,
        {
            "105": {"logprob": -1.5, "rank": 2, "decoded_token": "i"},
            "111": {"logprob": -0.25, "rank": 1, "decoded_token": "o"},
        },
    ]
    assert chat(client, prompt_logprobs=2)["prompt_logprobs"] == expected
    choice = complete(client, prompt_logprobs=2, logprobs=1)["choices"][0]
    assert choice["prompt_logprobs"] == expected
    assert choice["logprobs"]["tokens"] == ["ok", "<end>"]


@pytest.mark.parametrize(("fields", "says"), [({"prompt_logprobs": 21}, "20"), ({"stream": True}, "stream")])
def test_scores_of_the_prompt_have_limits(client: TestClient, fields: dict[str, Any], says: str) -> None:
    error = error_of(client.post(TEXT_PATH, json=TEXT | {"prompt_logprobs": 1} | fields), 400)
    assert error["param"] == "prompt_logprobs"
    assert says in error["message"]


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"truncate_prompt_tokens": 7}, b"answer:"),
        ({"truncate_prompt_tokens": 7, "truncation_side": "right"}, b"user:hi"),
        ({"truncate_prompt_tokens": 500}, PROMPT.encode()),
        ({"truncate_prompt_tokens": -1}, PROMPT.encode()),
    ],
)
def test_a_prompt_is_cut_to_so_many_tokens(
    client: TestClient, fuser: ScriptedFuser, fields: dict[str, Any], left: bytes
) -> None:
    assert chat(client, **fields)["usage"]["prompt_tokens"] == len(left)
    assert bytes(fuser.last.prompt.ids["a"]) == bytes(fuser.last.prompt.ids["b"]) == left


def test_a_prompt_too_long_is_cut_to_what_fits_beside_the_answer(client: TestClient, fuser: ScriptedFuser) -> None:
    complete(client, prompt="x" * 1000 + "end", truncate_prompt_tokens=-1, max_tokens=20, add_special_tokens=False)
    assert bytes(fuser.last.prompt.ids["a"]) == b"x" * 177 + b"end"
    answer = complete(client, prompt="abcdef", truncate_prompt_tokens=2, add_special_tokens=False, echo=True)
    assert answer["choices"][0]["text"].startswith("efHello")


def test_a_limit_that_fills_the_context_leaves_the_prompt_whole(client: TestClient, fuser: ScriptedFuser) -> None:
    """It is shortened to what is left, as without a cut."""
    for limit in (CONTEXT, 10**9):
        chat(client, truncate_prompt_tokens=-1, max_tokens=limit)
        assert bytes(fuser.last.prompt.ids["a"]) == PROMPT.encode()
        assert fuser.last.sampling.max_tokens == CONTEXT - len(PROMPT)


def test_a_prompt_that_decides_on_the_pivot_is_not_cut(fuser: ScriptedFuser) -> None:
    pair = ensemble()
    pair = replace(pair, views={name: View(pair.models, name, {}) for name in pair.models})
    with TestClient(create_app({"pair": pair}, fuser, ServerSettings())) as client:
        assert chat(client, truncate_prompt_tokens=-1)["usage"]["prompt_tokens"] == len(PROMPT)
        assert client.post("/v1/responses", json={"input": "hi", "truncation": "auto"}).status_code == 200
        long = client.post(TEXT_PATH, json={"prompt": "x" * CONTEXT, "truncate_prompt_tokens": -1})
        assert error_of(long, 400)["code"] == "context_length_exceeded"
        cut = client.post(TEXT_PATH, json=TEXT | {"truncate_prompt_tokens": 5})
        assert error_of(cut, 400)["param"] == "truncate_prompt_tokens"


def test_each_member_keeps_so_many_of_its_own_tokens(fuser: ScriptedFuser) -> None:
    """One that spells a text in more tokens than the pivot is cut where the pivot is not."""
    pair = ensemble()
    other = pair.models["b"].tokenizer

    def encode(text: str, *, room: Room | None, **_: object) -> list[int]:
        return other.shortened([byte for byte in text.encode() for _ in "12"], room)

    other.encode = encode  # type: ignore[method-assign]
    with TestClient(create_app({"pair": pair}, fuser, ServerSettings())) as client:
        body = {"prompt": "x" * 150, "truncate_prompt_tokens": -1, "max_tokens": 20, "add_special_tokens": False}
        complete(client, **body)
        assert [len(fuser.last.prompt.ids[name]) for name in "ab"] == [150, 180]
        complete(client, **body | {"truncate_prompt_tokens": 100})
        assert [len(fuser.last.prompt.ids[name]) for name in "ab"] == [100, 100]


def test_a_prompt_that_was_cut_is_echoed_with_its_own_tokens_and_places(
    client: TestClient, fuser: ScriptedFuser
) -> None:
    fields = {"truncate_prompt_tokens": 2, "add_special_tokens": False, "echo": True, "logprobs": 1}
    fuser.script = lambda submission: [
        Delta("", (), prompt=tuple(token(bytes([id])) for id in submission.prompt.ids["a"])),
        *says("X"),
    ]
    choice = complete(client, prompt="abcdef", **fields)["choices"][0]
    assert choice["text"] == "efX"
    assert choice["logprobs"]["tokens"][:3] == ["e", "f", "X"]
    assert choice["logprobs"]["text_offset"][:3] == [0, 1, 2]
    place = fuser.last.prompt.located["a"]
    assert (place.starts.tolist(), place.ends.tolist()) == ([0, 1], [1, 2])


def test_what_a_view_sets_before_a_prompt_is_not_cut(client: TestClient, fuser: ScriptedFuser) -> None:
    views = [{"context": "DOCUMENT-0123456789", "weight": 1.0}]
    body = {"prompt": "question?", "truncate_prompt_tokens": 12, "add_special_tokens": False}
    complete(client, **body, fusion={"views": views}, model="other/one", max_tokens=4)
    viewed = [bytes(ids) for ids in fuser.last.prompt.ids.values() if len(ids) > 12]
    assert viewed
    assert all(text.startswith(b"DOCUMENT-0123456789") and text.endswith(b"question?") for text in viewed)


@pytest.mark.parametrize(
    "fields", [{"truncate_prompt_tokens": 0}, {"truncate_prompt_tokens": -2}, {"truncation_side": "left"}]
)
def test_a_cut_that_means_nothing_is_refused(client: TestClient, fields: dict[str, Any]) -> None:
    assert error_of(client.post(CHAT_PATH, json=CHAT | fields), 400)["param"] == next(iter(fields))


def test_an_answer_has_the_id_that_was_asked_for(client: TestClient) -> None:
    assert chat(client, request_id="mine")["id"] == "chatcmpl-mine"
    assert complete(client, request_id="mine")["id"] == "cmpl-mine"
    assert {chunk["id"] for chunk in streamed(client, CHAT_PATH, request_id="mine")} == {"chatcmpl-mine"}
    for insane in "", "x" * 129, "é", "a\nb":
        assert re.fullmatch("chatcmpl-[0-9a-f]{32}", chat(client, request_id=insane)["id"])


def test_usage_comes_with_every_chunk_where_asked_for(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda submission: says("o", "k")
    options = {"include_usage": True, "continuous_usage_stats": True}
    for path in (CHAT_PATH, TEXT_PATH):
        counts = [chunk["usage"]["completion_tokens"] for chunk in streamed(client, path, stream_options=options)]
        assert counts[-1] == 3
        assert counts == sorted(counts)
    chunks = streamed(client, CHAT_PATH, stream_options={"continuous_usage_stats": True})
    assert not any("usage" in chunk for chunk in chunks)


def test_tokens_that_the_pivot_had_cached_are_counted(client: TestClient, fuser: ScriptedFuser) -> None:
    account = Account(0.0, reused={"a": 7, "b": 3})
    fuser.script = lambda submission: [End("ok", (token(b"ok"),), "a", finish="stop", account=account)]
    assert chat(client)["usage"]["prompt_tokens_details"] == {"cached_tokens": 7}
    assert complete(client, n=2)["usage"]["prompt_tokens_details"] == {"cached_tokens": 7}


def test_other_apis_say_that_their_answers_have_no_place_for_these(client: TestClient) -> None:
    body = {"model": "pair", "input": "hi", "return_token_ids": True}
    assert error_of(client.post("/v1/responses", json=body), 400)["param"] == "return_token_ids"
