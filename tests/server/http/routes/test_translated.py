"""Responses and Messages over the same answers as chat completions, read by the vendors' own clients."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from alignment.errors import InvalidRequestError, UnavailableError, field_error
from fusion.core import End
from server.http.routes.messages import NAMES as MESSAGES
from server.http.routes.responses import NAMES as RESPONSES
from server.http.routes.translated import Names, in_words_of
from tests.support.scripted_fuser import CONTEXT, ScriptedFuser, ensemble, says
from tests.support.served import Served

Serve = Callable[..., Served]


def test_the_sdk_reads_a_response(serve: Serve) -> None:
    answer = serve().sdk().responses.create(model="pair", input="hi", store=False)
    assert answer.output_text == "Hello world"
    assert answer.usage is not None
    assert answer.usage.output_tokens == 3


def test_the_sdk_streams_a_response(serve: Serve) -> None:
    with serve().sdk().responses.stream(model="pair", input="hi") as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(texts) == stream.get_final_response().output_text == "Hello world"


def test_a_response_that_fails_says_so(serve: Serve, fuser: ScriptedFuser) -> None:
    fuser.script = lambda s: [*says("Hel")[:-1], 0.05, End("", error=UnavailableError("Member 'b' failed."))]
    with serve().http() as http:
        text = http.post("/v1/responses", json={"model": "pair", "input": "hi", "stream": True}).text
    assert "event: response.failed" in text
    assert "[DONE]" not in text


def test_state_is_refused(serve: Serve) -> None:
    with serve().http() as http:
        answer = http.post("/v1/responses", json={"input": "hi", "previous_response_id": "resp_1"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "previous_response_id"


def test_a_response_may_be_cut_at_the_beginning(serve: Serve, fuser: ScriptedFuser) -> None:
    sdk = serve().sdk()
    short = sdk.responses.create(model="pair", input="hi", truncation="auto")
    assert (short.truncation, short.usage and short.usage.input_tokens) == ("auto", len("user:hi\nanswer:"))
    sdk.responses.create(model="pair", input="x" * CONTEXT + "end", truncation="auto", max_output_tokens=20)
    prompt = bytes(fuser.last.prompt.ids["a"])
    assert (len(prompt), prompt[-11:]) == (CONTEXT - 20, b"end\nanswer:")
    assert sdk.responses.create(model="pair", input="hi").truncation == "disabled"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": "hi"}),
        ("/v1/messages", {"max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}),
    ],
)
def test_a_report_has_no_place(serve: Serve, path: str, body: dict[str, object]) -> None:
    with serve().http() as http:
        answer = http.post(path, json=body | {"fusion": {"report": True}})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith("fusion.report has no place")
        assert http.post(path, json=body | {"fusion": {"report": False}}).status_code == 200


def test_a_tool_of_a_response_is_named_where_it_was_given(serve: Serve) -> None:
    """Others before it are left out, or stand for several."""
    function = {"type": "function", "name": "f"}
    inner = [function, "none", function | {"name": "g"}]
    tools = [{"type": "web_search"}, {"type": "namespace", "name": "n", "tools": inner}]
    with serve().http() as http:
        for more, param in (
            ([function, function], "tools[3].name"),
            ([{"type": "namespace", "name": "n", "tools": ["none", function]}], "tools[2].tools[1].name"),
            ([function | {"parameters": {"type": "array"}}], "tools[2].parameters"),
        ):
            answer = http.post("/v1/responses", json={"input": "hi", "tools": [*tools, *more]})
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert error["param"] == param
            assert error["message"].startswith(f"{param} ")


@pytest.mark.parametrize(("names", "field"), [(MESSAGES, "messages"), (RESPONSES, "input")])
def test_an_item_is_not_named_by_the_number_of_another(names: Names, field: str) -> None:
    with pytest.raises(InvalidRequestError) as refused, in_words_of(names):
        raise field_error("messages[3].tool_calls[0].id", "is missing.")
    assert (refused.value.param, refused.value.message) == (field, f"{field} is missing.")


def test_a_message_is_answered_and_its_tokens_are_counted(serve: Serve) -> None:
    served = serve(api_keys=("sk-right",))
    body = {"model": "pair", "max_tokens": 20, "messages": [{"role": "user", "content": "hi"}]}
    key = {"x-api-key": "sk-right"}
    with served.http() as http:
        message = http.post("/v1/messages?beta=true", json=body, headers=key).json()
        counted = http.post("/v1/messages/count_tokens", json=body, headers=key).json()
        refused = http.post("/v1/messages", json=body | {"max_tokens": 0}, headers=key)
        stream = http.post("/v1/messages", json=body | {"stream": True}, headers=key).text
    assert message["content"] == [{"type": "text", "text": "Hello world"}]
    assert counted["input_tokens"] == message["usage"]["input_tokens"]
    assert refused.json()["type"] == "error"
    assert stream.startswith("event: message_start")
    assert "event: message_stop" in stream


def test_a_schema_is_named_where_it_was_given(serve: Serve) -> None:
    body = {"model": "pair", "max_tokens": 20, "messages": [{"role": "user", "content": "hi"}]}
    format = {"type": "json_schema", "schema": {"type": "object", "minProperties": "one"}}
    with serve().http() as http:
        for fields, name in (
            ({"output_format": format}, "output_format.schema"),
            ({"output_config": {"format": format}}, "output_config.format.schema"),
        ):
            answer = http.post("/v1/messages", json=body | fields)
            assert answer.status_code == 400
            assert answer.json()["error"]["message"].startswith(f"{name} ")


def test_anthropics_client_lists_the_models(serve: Serve) -> None:
    anthropic = pytest.importorskip("anthropic")
    with anthropic.Anthropic(base_url=serve(aliases={"claude": "pair"}).url, api_key="any") as client:
        models = list(client.models.list(limit=1))
        assert [model.id for model in models] == ["pair", "claude"]
        for model in [*models, client.models.retrieve("claude")]:
            anthropic.types.ModelInfo.model_validate(model.model_dump())
        assert time.time() - models[0].created_at.timestamp() < 60


def test_anthropics_client_streams(serve: Serve) -> None:
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=serve().url, api_key="any")
    with client.messages.stream(
        model="pair", max_tokens=20, messages=[{"role": "user", "content": "hi"}]
    ) as stream:
        assert "".join(stream.text_stream) == "Hello world"


def weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: where.
    """
    return f"Rain in {city}."


def test_anthropics_tool_runner_goes_on_without_a_thread(serve: Serve, fuser: ScriptedFuser) -> None:
    """It leaves the history to a server that can keep it."""
    anthropic = pytest.importorskip("anthropic")
    call = '{"name": "weather", "arguments": {"city": "Bern"}}'
    fuser.script = lambda s: says(call if len(fuser.submissions) == 1 else "Take a coat.")
    served = serve({"pair": ensemble(context=2000)})
    with anthropic.Anthropic(base_url=served.url, api_key="any", max_retries=0) as client:
        runner = client.beta.messages.tool_runner(
            model="pair",
            max_tokens=60,
            system="Be brief.",
            messages=[{"role": "user", "content": "Bern?"}],
            tools=[anthropic.beta_tool(weather)],
        )
        assert runner.until_done().content[0].text == "Take a coat."
    prompt = bytes(fuser.last.prompt.ids["a"]).decode()
    assert all(text in prompt for text in ("Be brief.", "Bern?", "Rain in Bern.", "The weather in a city."))


def test_a_thread_of_anthropics_client_has_its_history_or_fails(serve: Serve, fuser: ScriptedFuser) -> None:
    anthropic = pytest.importorskip("anthropic")
    one, two = ({"role": "user", "content": text} for text in ("one", "two"))
    with anthropic.Anthropic(base_url=serve().url, api_key="any", max_retries=0) as client:
        with pytest.raises(anthropic.BadRequestError, match="send the whole one") as refused:
            client.beta.messages.thread(model="pair", max_tokens=20).send(one)
        assert refused.value.body["error"]["details"]["error_code"] == "thread_unsupported_request"
        thread = client.beta.messages.thread(
            model="pair", max_tokens=20, unsupported_request_behavior="continue_unthreaded"
        )
        assert thread.send(one)._request_id
        thread.send(two)
    assert bytes(fuser.last.prompt.ids["a"]).decode().startswith("user:one\nassistant:Hello world\nuser:two")
