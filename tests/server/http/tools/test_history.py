from __future__ import annotations

import pytest

from alignment.errors import InvalidRequestError
from server.http.tools.calls import Tool
from server.http.tools.formats import FORMATS
from server.http.tools.history import checked, shown
from server.http.tools.template import ToolSupport

HERMES, JSON = FORMATS["hermes"], FORMATS["json"]
FULL = ToolSupport(HERMES, tools=True, calls=True, several=True)
NOTHING = ToolSupport(JSON, tools=False, calls=False, several=False)
TOOLS = [Tool("f", "does f")]


def call(id, arguments='{"a": 1}'):
    return {"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}}


HISTORY = [
    {"role": "user", "content": "go"},
    {"role": "assistant", "content": "", "tool_calls": [call("one"), call("two", '{"a": 2}')]},
    {"role": "tool", "tool_call_id": "one", "content": "r1"},
    {"role": "tool", "tool_call_id": "two", "content": "r2"},
    {"role": "user", "content": "and?"},
]


def test_arguments_become_mappings_and_results_get_names():
    clean = checked(HISTORY)
    assert clean[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert clean[2] == {"role": "tool", "tool_call_id": "one", "content": "r1", "name": "f"}


@pytest.mark.parametrize("cut", ["{", '{"a": ', "[1]", "3", '{"a":' * 300 + "1" + "}" * 300])
def test_arguments_that_are_no_object_do_not_end_a_conversation(cut):
    """Another server may have cut a call off; what is nested too deep to be written is none either."""
    clean = checked([{"role": "assistant", "content": "", "tool_calls": [call("x", cut)]}])
    assert clean[0]["tool_calls"][0]["function"]["arguments"] == {}


def test_results_belong_to_the_calls_before_them_where_ids_are_used_again():
    def turn(*results):
        calls = [call(f"call_{number}") for number in range(len(results))]
        said = [{"role": "tool", "tool_call_id": f"call_{n}", "content": text} for n, text in enumerate(results)]
        return [{"role": "assistant", "content": "", "tool_calls": calls}, *said]

    history = [{"role": "user", "content": "hi"}, *turn("r0", "r1"), *turn("r2", "r3"), *turn("r4")]
    messages, _ = shown(checked(history), TOOLS, ToolSupport(HERMES, True, True, False), HERMES)
    assert [message["role"] for message in messages] == ["user", *["assistant", "tool"] * 5]
    assert [message["content"] for message in messages if message["role"] == "tool"] == [f"r{n}" for n in range(5)]
    ids = [
        (a["tool_calls"][0]["id"], b["tool_call_id"]) for a, b in zip(messages[1::2], messages[2::2], strict=True)
    ]
    assert ids == [(f"call_{n}",) * 2 for n in (0, 1, 0, 1, 0)]


def test_calls_of_one_id_have_a_result_each():
    said = [{"role": "tool", "tool_call_id": "x", "content": text} for text in ("r1", "r2", "r3")]
    history = [{"role": "assistant", "content": "", "tool_calls": [call("x"), call("x")]}, *said]
    messages, _ = shown(checked(history), TOOLS, ToolSupport(HERMES, True, True, False), HERMES)
    assert [message["content"] for message in messages] == ["", "r1", "", "r2", "r3"]


def test_a_template_that_shows_tools_gets_them_as_they_are():
    messages, tools = shown(checked(HISTORY), TOOLS, FULL, HERMES)
    assert messages == checked(HISTORY)
    assert tools == [TOOLS[0].as_dict()]
    assert shown(checked(HISTORY), [], FULL, HERMES)[1] is None


def test_a_template_without_tools_gets_everything_as_text_in_turns():
    messages, tools = shown(checked(HISTORY), TOOLS, NOTHING, HERMES)
    assert tools is None
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert "does f" in messages[0]["content"]
    assert messages[2]["content"].count("<tool_call>") == 2
    assert [text in messages[3]["content"] for text in ("r1", "r2", "and?")] == [True] * 3
    assert all(set(message) == {"role", "content"} for message in messages)


def test_a_template_of_another_format_gets_the_pivots_as_text():
    messages, tools = shown(checked(HISTORY), TOOLS, ToolSupport(FORMATS["llama"], True, True, True), HERMES)
    assert tools is None
    assert "<tool_call>" in messages[2]["content"]


def test_a_system_message_is_kept_before_the_tools():
    history = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
    messages, _ = shown(checked(history), TOOLS, NOTHING, HERMES)
    assert messages[0]["content"].startswith("Be kind.\n\n")
    assert len(messages) == 2


def test_several_calls_come_one_by_one_where_a_template_knows_one_only():
    messages, _ = shown(checked(HISTORY), TOOLS, ToolSupport(HERMES, True, True, False), HERMES)
    roles = [message["role"] for message in messages]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "user"]
    assert [message["content"] for message in messages if message["role"] == "tool"] == ["r1", "r2"]


def test_ids_for_mistral_have_nine_digits_and_still_belong_together():
    support = ToolSupport(FORMATS["mistral"], True, True, True)
    messages, _ = shown(checked(HISTORY), TOOLS, support, FORMATS["mistral"])
    ids = [made["id"] for made in messages[1]["tool_calls"]]
    assert ids == [message["tool_call_id"] for message in messages if message["role"] == "tool"]
    assert all(len(id) == 9 and id.isalnum() for id in ids)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "assistant", "tool_calls": [call("x", [1])]}, "messages[0].tool_calls[0].function.arguments"),
        ({"role": "assistant", "tool_calls": [{"id": "x"}]}, "messages[0].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [call(None)]}, "messages[0].tool_calls[0].id"),
        ({"role": "user", "content": "", "tool_calls": [call("x")]}, "messages[0].tool_calls"),
        ({"role": "tool", "tool_call_id": "nope", "content": ""}, "messages[0].tool_call_id"),
    ],
)
def test_broken_histories_are_refused_naming_the_place(message, param):
    with pytest.raises(InvalidRequestError) as refused:
        checked([message])
    assert refused.value.param == param
