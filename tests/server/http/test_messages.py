from __future__ import annotations

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from alignment.errors import (
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PromptTooLongError,
    RequestError,
)
from server.http.protocol.messages import CountTokensRequest, MessagesRequest, as_chat
from server.http.protocol.messages_answer import MessageStream, as_message, error_body

types = pytest.importorskip("anthropic.types")
EVENT = TypeAdapter(types.RawMessageStreamEvent)
CLEAR_THINKING = {"type": "clear_thinking_20251015"}
FORMAT = {"type": "json_schema", "schema": {"type": "object"}}
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
FIRST = {"index": 0, "id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": ""}}


def request(**fields):
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]} | fields
    return MessagesRequest.model_validate(body)


def events(deltas, finish="stop", stop_reason=None):
    stream = MessageStream("m", input_tokens=3)
    found = stream.start() + [event for delta in deltas for event in stream.push(delta)]
    found += stream.finish(finish, USAGE, stop_reason)
    found = json.loads(json.dumps(found))
    for event in found:
        assert EVENT.validate_python(event).type == event["type"]
    return found, types.Message.model_validate(stream.message)


def kinds(found):
    return [event["type"].removeprefix("content_") for event in found]


def test_a_text_comes_in_the_sequence_that_clients_need():
    found, message = events([{"role": "assistant"}, {"content": "Hel"}, {"content": "lo"}])
    assert kinds(found) == [
        "message_start", "block_start", "block_delta", "block_delta", "block_stop", "message_delta", "message_stop"
    ]  # fmt: skip
    start = found[0]["message"]
    assert (start["content"], start["usage"]) == ([], {"input_tokens": 3, "output_tokens": 0})
    nothing = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    nothing["output_tokens_details"] = {"thinking_tokens": 0}
    assert found[-2]["usage"] == {"input_tokens": 3, "output_tokens": 4} | nothing
    assert (message.content[0].text, message.stop_reason) == ("Hello", "end_turn")


def test_thoughts_text_and_calls_are_blocks_one_after_the_other():
    deltas = [
        {"reasoning": "hm"},
        {"content": "Well."},
        {"tool_calls": [FIRST]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":1}'}}]},
        {"tool_calls": [FIRST | {"index": 1, "id": "toolu_2"}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
    ]
    found, message = events(deltas, "tool_calls")
    thought = ["block_start", "block_delta", "block_delta", "block_stop"]
    assert kinds(found)[1:-2] == [*thought, *["block_start", "block_delta", "block_stop"] * 3]
    signed = [
        event["delta"]["signature"] for event in found if event.get("delta", {}).get("type") == "signature_delta"
    ]
    assert signed == [message.content[0].signature] != [""]
    assert [event["index"] for event in found if event["type"] == "content_block_start"] == [0, 1, 2, 3]
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert (message.content[2].input, message.content[3].input) == ({"a": 1}, {})
    assert message.stop_reason == "tool_use"


def test_what_was_cached_is_counted_beside_the_rest_of_the_input():
    stream = MessageStream("m")
    usage = USAGE | {"prompt_tokens_details": {"cached_tokens": 2}}
    counts = stream.finish("stop", usage)[-2]["usage"]
    assert (counts["input_tokens"], counts["cache_read_input_tokens"]) == (1, 2)


def test_tokens_of_thoughts_are_counted_apart():
    details = {"completion_tokens_details": {"reasoning_tokens": 3}}
    answer = {
        "model": "m",
        "choices": [{"message": {"content": "x"}, "finish_reason": "stop"}],
        "usage": USAGE | details,
    }
    usage = types.Message.model_validate(as_message(answer)).usage
    assert (usage.output_tokens, usage.output_tokens_details.thinking_tokens) == (4, 3)


def test_lines_of_accounting_are_no_part_of_the_prompt():
    """They are others with each request, so that nothing after them would be found in a cache."""
    accounting = {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=0a1b;"}
    chat = as_chat(request(system=[accounting, {"type": "text", "text": "Be kind."}]))
    assert chat["messages"][0] == {"role": "system", "content": "Be kind."}
    assert as_chat(request(system=[accounting]))["messages"] == [{"role": "user", "content": "hi"}]
    assert as_chat(request(system=accounting["text"]))["messages"] == [{"role": "user", "content": "hi"}]
    joined = accounting["text"] + "\n\nBe kind.\nBe brief."
    for system in joined, [accounting | {"text": joined}]:
        assert as_chat(request(system=system))["messages"][0]["content"] == "Be kind.\nBe brief."
    turns = [{"role": "system", "content": accounting["text"]}, {"role": "user", "content": "hi"}]
    assert as_chat(request(messages=turns))["messages"] == turns[1:]


@pytest.mark.parametrize(
    ("thinking", "kwargs"),
    [
        (None, None),
        ({"type": "disabled"}, None),
        ({"type": "adaptive"}, {"enable_thinking": True, "thinking": True}),
        ({"type": "enabled", "budget_tokens": 3}, {"enable_thinking": True, "thinking": True}),
    ],
)
def test_thinking_is_switched_on_in_templates(thinking, kwargs):
    assert as_chat(request(thinking=thinking)).get("chat_template_kwargs") == kwargs
    assert as_chat(request(thinking=thinking, chat_template_kwargs=None)).get("chat_template_kwargs") == kwargs
    both = as_chat(request(thinking=thinking, chat_template_kwargs={"thinking": 1, "x": 2}))[
        "chat_template_kwargs"
    ]
    assert both == (kwargs or {}) | {"thinking": 1, "x": 2}


@pytest.mark.parametrize(
    ("finish", "stop_reason", "expected"),
    [
        ("length", None, ("max_tokens", None)),
        ("stop", "END", ("stop_sequence", "END")),
        ("stop", 7, ("end_turn", None)),
    ],
)
def test_why_an_answer_ended_is_said_in_the_words_of_this_api(finish, stop_reason, expected):
    found, message = events([{"content": "x"}], finish, stop_reason)
    assert (message.stop_reason, message.stop_sequence) == expected
    assert found[-2]["delta"] == dict(zip(("stop_reason", "stop_sequence"), expected, strict=True))


def test_an_empty_answer_still_has_a_text_block():
    _, message = events([])
    assert message.content[0].text == ""


def test_a_whole_answer_is_the_same_object():
    call = {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    answer = {
        "model": "m",
        "choices": [{"message": {"content": "x", "tool_calls": [call]}, "finish_reason": "tool_calls"}],
        "usage": USAGE,
    }
    message = types.Message.model_validate(as_message(answer))
    assert [block.type for block in message.content] == ["text", "tool_use"]
    assert message.content[1].input == {"a": 1}


def test_an_answer_that_has_begun_goes_on():
    asked = [{"role": "user", "content": "JSON, please"}]
    chat = as_chat(request(messages=[*asked, {"role": "assistant", "content": "{"}]))
    assert (chat["continue_final_message"], chat["add_generation_prompt"]) == (True, False)
    called = [{"type": "tool_use", "id": "t1", "name": "f", "input": {}}]
    for messages in (asked, [*asked, {"role": "assistant", "content": called}]):
        assert "continue_final_message" not in as_chat(request(messages=messages))


def test_a_request_becomes_the_chat_request_that_asks_the_same():
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "go", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "Well."},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "r1"}]},
                {"type": "text", "text": "and?"},
            ],
        },
    ]
    chat = as_chat(
        request(
            messages=messages,
            system=[{"type": "text", "text": "Be kind."}],
            stop_sequences=["END"],
            tools=[{"name": "f", "description": "does", "strict": True, "input_schema": {"type": "object"}}],
            tool_choice={"type": "any", "disable_parallel_tool_use": True},
            thinking={"type": "disabled"},
            output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}},
            metadata={"user_id": "x"},
        )
    )
    told = chat.pop("messages")
    assert [message["role"] for message in told] == ["system", "user", "assistant", "tool", "user"]
    assert told[2]["reasoning"] == "hm"
    assert json.loads(told[2]["tool_calls"][0]["function"]["arguments"]) == {"a": 1}
    assert told[3] == {"role": "tool", "tool_call_id": "t1", "content": "r1"}
    assert chat == {
        "model": "m",
        "max_tokens": 9,
        "stop": ["END"],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "f",
                    "description": "does",
                    "strict": True,
                    "parameters": {"type": "object"},
                },
            }
        ],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "reasoning_effort": "none",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": {"type": "object"}, "strict": True},
        },
    }


def test_tokens_are_counted_without_a_limit_but_answers_need_one():
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    assert as_chat(CountTokensRequest.model_validate(body)) == body
    with pytest.raises(ValidationError):
        MessagesRequest.model_validate(body)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages[0].content[0].type"),
        (
            {
                "system": "x",
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "", "name": "f", "input": {}}]}
                ],
            },
            "messages[0].content[0].id",
        ),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "sometimes"}}, "tool_choice.type"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"mcp_servers": [{"type": "url", "url": "https://tools.example", "name": "t"}]}, "mcp_servers"),
        ({"container": {"skills": [{"type": "anthropic", "skill_id": "pptx"}]}}, "container"),
        ({"compaction": {"instructions": "Shorten."}}, "compaction"),
        (
            {"context_management": {"edits": [CLEAR_THINKING, {"type": "clear_tool_uses_20250919"}]}},
            "context_management.edits[1].type",
        ),
        ({"output_format": {"type": "xml"}}, "output_format.type"),
        ({"output_format": FORMAT, "output_config": {"format": FORMAT}}, "output_format"),
    ],
)
def test_what_cannot_be_served_is_refused_naming_the_field(fields, param):
    with pytest.raises(InvalidRequestError) as refused:
        as_chat(request(**fields))
    assert refused.value.param == param


def test_what_changes_no_answer_is_no_reason_to_refuse():
    """Claude Code sends some of it with every request."""
    fields = {
        "context_management": {"edits": [CLEAR_THINKING | {"keep": "all"}]},
        "fallbacks": "default",
        "container": None,
        "cache_control": {"type": "ephemeral"},
        "service_tier": "auto",
        "speed": "standard",
    }
    assert as_chat(request(**fields)) == as_chat(request())
    assert as_chat(request(context_management={})) == as_chat(request())


def test_the_format_of_an_answer_may_have_its_older_name():
    older, newer = request(output_format=FORMAT), request(output_config={"format": FORMAT})
    assert as_chat(older) == as_chat(newer)
    assert as_chat(older)["response_format"]["json_schema"]["schema"] == FORMAT["schema"]


def test_an_image_is_of_a_type_that_is_not_built():
    image = [{"type": "image"}]
    for fields in {"system": image}, {"messages": [{"role": "user", "content": image}]}:
        with pytest.raises(InvalidRequestError, match="is of type 'image'") as refused:
            as_chat(request(**fields))
        assert refused.value.code == "not_implemented"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequestError("x"), "invalid_request_error"),
        (NotFoundError("x"), "not_found_error"),
        (OverloadedError("x"), "rate_limit_error"),
        (RequestError("x"), "api_error"),
    ],
)
def test_errors_have_the_shape_of_this_api(error, kind):
    assert error_body(error, "req_1") == {
        "type": "error",
        "error": {"type": kind, "message": "x"},
        "request_id": "req_1",
    }


def test_a_prompt_too_long_is_told_in_words_that_claude_code_looks_for():
    error = error_body(PromptTooLongError("Shorten it.", tokens=210, limit=199))["error"]
    assert error == {
        "type": "invalid_request_error",
        "message": "prompt is too long: 210 tokens > 199 maximum. Shorten it.",
    }
