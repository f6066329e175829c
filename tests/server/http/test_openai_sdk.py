"""The official Python SDK against the server: what it parses, raises and notices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest

from alignment.errors import OverloadedError, UnavailableError
from fusion.core import End
from tests.support.scripted_fuser import ScriptedFuser, eventually, report, says, token
from tests.support.served import Served

Serve = Callable[..., Served]
HELLO: Any = [{"role": "user", "content": "hi"}]


def test_chat(serve: Serve) -> None:
    answer = serve().sdk().chat.completions.create(model="pair", messages=HELLO)
    assert answer.choices[0].message.content == "Hello world"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    assert answer._request_id


def test_chat_stream_with_usage(serve: Serve) -> None:
    stream = (
        serve()
        .sdk()
        .chat.completions.create(model="pair", messages=HELLO, stream=True, stream_options={"include_usage": True})
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello world"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


def test_chat_stream_helper_assembles_the_answer(serve: Serve) -> None:
    with serve().sdk().chat.completions.stream(model="pair", messages=HELLO, n=2) as stream:
        answer = stream.get_final_completion()
    assert [choice.message.content for choice in answer.choices] == ["Hello world"] * 2


def test_logprobs(serve: Serve, fuser: ScriptedFuser) -> None:
    fuser.script = lambda s: [End("a", (token(b"a", -0.5, ((b"a", -0.5), (b"b", -1.5))),), finish="length")]
    answer = serve().sdk().chat.completions.create(model="pair", messages=HELLO, logprobs=True, top_logprobs=2)
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    assert [top.token for top in answer.choices[0].logprobs.content[0].top_logprobs] == ["a", "b"]


def test_completions_and_their_stream(serve: Serve) -> None:
    sdk = serve().sdk()
    answer = sdk.completions.create(model="pair", prompt=["a", "b"], logprobs=1)
    assert [choice.text for choice in answer.choices] == ["Hello world"] * 2
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.tokens == ["Hello", " world", "<end>"]
    stream = sdk.completions.create(model="pair", prompt=[104, 105], stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "Hello world"


def test_fusion_through_extra_body(serve: Serve, fuser: ScriptedFuser) -> None:
    fuser.script = lambda s: [End("a", (token(b"a"),), finish="length", rounds=(report(97),))]
    answer = (
        serve()
        .sdk()
        .chat.completions.create(
            model="pair", messages=HELLO, extra_body={"fusion": {"weights": {"a": 1, "b": 3}, "report": True}}
        )
    )
    assert fuser.last.fusion.weights == {"a": 0.25, "b": 0.75}
    assert answer.choices[0].model_extra is not None
    assert answer.choices[0].model_extra["fusion"]["rounds"][0]["token"] == 97


def test_models(serve: Serve) -> None:
    sdk = serve().sdk()
    assert [model.id for model in sdk.models.list()] == ["pair"]
    assert sdk.models.retrieve("pair").owned_by == "tutti"
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("nobody")


def test_errors_are_typed(serve: Serve, fuser: ScriptedFuser) -> None:
    served = serve(api_keys=("sk-right",))
    with pytest.raises(openai.AuthenticationError):
        served.sdk(api_key="sk-wrong").models.list()
    sdk = served.sdk(api_key="sk-right")
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model="pair", messages=HELLO, temperature=3)
    assert caught.value.param == "temperature"
    assert caught.value.request_id
    with pytest.raises(openai.NotFoundError):
        sdk.chat.completions.create(model="nobody", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as unbuilt:
        sdk.completions.create(model="pair", prompt="a", suffix="b")
    assert unbuilt.value.code == "not_implemented"
    fuser.refuse = (0, OverloadedError("Too many sequences are waiting."))
    with pytest.raises(openai.RateLimitError):
        sdk.chat.completions.create(model="pair", messages=HELLO)


def test_the_sdk_tries_again_when_told_to(serve: Serve, fuser: ScriptedFuser) -> None:
    failures = iter([True, False])
    broken = [End("", error=UnavailableError("Member 'b' failed."))]
    fuser.script = lambda s: broken if next(failures) else says("ok")
    sdk = serve().sdk().with_options(max_retries=1)
    assert sdk.chat.completions.create(model="pair", messages=HELLO).choices[0].message.content == "ok"


def test_a_failure_in_a_stream_is_raised(serve: Serve, fuser: ScriptedFuser) -> None:
    fuser.script = lambda s: [*says("Hel")[:-1], 0.05, End("", error=UnavailableError("Member 'b' failed."))]
    stream = serve().sdk().chat.completions.create(model="pair", messages=HELLO, stream=True)
    with pytest.raises(openai.APIError, match="Member 'b' failed"):
        list(stream)


def test_closing_a_stream_stops_its_sequence(serve: Serve, fuser: ScriptedFuser) -> None:
    fuser.script = lambda s: [*says("Hel")[:-1], 60.0]
    stream = serve().sdk().chat.completions.create(model="pair", messages=HELLO, stream=True)
    next(iter(stream))
    stream.close()
    assert eventually(fuser.last.cancelled.is_set)


def test_large_bodies_are_an_error_of_the_request(serve: Serve) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        serve().sdk().completions.create(model="pair", prompt="x" * 10_000_000)
    assert caught.value.status_code == 413
