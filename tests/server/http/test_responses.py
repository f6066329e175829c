from __future__ import annotations

import json

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from alignment.errors import InvalidRequestError, OverloadedError
from server.http.protocol.responses import ResponsesRequest, as_chat
from server.http.protocol.responses_answer import ResponseStream, as_response
from server.http.tools.calls import declared

EVENT = TypeAdapter(ResponseStreamEvent)
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
TOOL = {"type": "function", "name": "f", "description": "does", "parameters": {"type": "object"}, "strict": True}


def request(**fields):
    return ResponsesRequest.model_validate({"model": "m", "input": "hi"} | fields)


def events(deltas, finish="stop", **fields):
    stream = ResponseStream(request(**fields), "m")
    found = stream.start() + [event for delta in deltas for event in stream.push(delta)]
    found += stream.finish(finish, USAGE)
    found = json.loads(json.dumps(found))
    for event in found:
        assert EVENT.validate_python(event).type == event["type"]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    Response.model_validate(found[-1]["response"])
    return found


def kinds(found):
    return [event["type"].removeprefix("response.") for event in found]


TEXT = ["output_item.added", "content_part.added", "output_text.delta", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done"]  # fmt: skip
CALL = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
THOUGHT = ["output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done",
           "content_part.done", "output_item.done"]  # fmt: skip
FIRST = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}


def test_a_text_comes_in_the_sequence_that_clients_need():
    found = events([{"role": "assistant", "content": "Hel"}, {"content": "lo"}])
    assert kinds(found) == ["created", "in_progress", *TEXT, "completed"]
    response = found[-1]["response"]
    assert response["output"][0]["content"][0]["text"] == "Hello"
    assert response["usage"]["total_tokens"] == 7
    assert (response["status"], response["store"], found[0]["response"]["output"]) == ("completed", False, [])


def test_thoughts_text_and_calls_are_items_one_after_the_other():
    deltas = [
        {"reasoning": "hm"},
        {"content": "Well"},
        {"content": "."},
        {"tool_calls": [FIRST]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":1}'}}]},
        {"tool_calls": [FIRST | {"index": 1, "id": "call_2"}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
    ]
    found = events(deltas, "tool_calls", tools=[TOOL])
    assert kinds(found) == ["created", "in_progress", *THOUGHT, *TEXT, *CALL, *CALL, "completed"]
    output = found[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]
    assert (output[2]["call_id"], output[2]["arguments"], output[3]["call_id"]) == ("call_1", '{"a":1}', "call_2")
    indices = [event["output_index"] for event in found if "output_index" in event]
    assert indices == sorted(indices)


def test_a_cut_answer_is_incomplete_and_an_empty_one_still_has_a_message():
    found = events([{"content": "He"}], "length")
    assert kinds(found)[-1] == "incomplete"
    assert found[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events([])[-1]["response"]["output"][0]["content"][0]["text"] == ""


def test_a_call_that_the_limit_comes_after_is_whole():
    call = {"tool_calls": [FIRST | {"function": {"name": "f", "arguments": "{}"}}]}
    assert events([call], "length", tools=[TOOL])[-1]["response"]["output"][0]["status"] == "completed"


NAMESPACES = [{"type": "namespace", "name": name, "description": "", "tools": [TOOL]} for name in ("a", "b")]


def test_a_tool_of_a_namespace_is_shown_with_it_and_called_by_both_its_names():
    assert [tool["function"]["name"] for tool in as_chat(request(tools=NAMESPACES))["tools"]] == ["a__f", "b__f"]
    call = {"tool_calls": [FIRST | {"function": {"name": "b__f", "arguments": "{}"}}]}
    found = events([call], "tool_calls", tools=NAMESPACES)
    item = found[-1]["response"]["output"][0]
    assert (item["name"], item["namespace"]) == ("f", "b")
    assert found[-1]["response"]["tools"] == NAMESPACES
    history = [item, {"type": "function_call_output", "call_id": item["call_id"], "output": "r"}]
    messages = as_chat(request(tools=NAMESPACES, input=history))["messages"]
    assert messages[0]["tool_calls"][0]["function"]["name"] == "b__f"
    chosen = as_chat(request(tools=NAMESPACES, tool_choice={"type": "function", "namespace": "b", "name": "f"}))
    assert chosen["tool_choice"]["function"]["name"] == "b__f"


def test_a_choice_without_a_namespace_is_the_only_tool_of_that_name():
    def chosen(tools, **choice):
        return as_chat(request(tools=tools, tool_choice={"type": "function", "name": "f"} | choice))["tool_choice"]

    assert chosen(NAMESPACES[:1])["function"]["name"] == "a__f"
    assert chosen([*NAMESPACES, TOOL])["function"]["name"] == "f"
    assert chosen(NAMESPACES)["function"]["name"] == "f"  # which is none of them, and refused as such
    assert chosen(NAMESPACES, namespace="b")["function"]["name"] == "b__f"


@pytest.mark.parametrize("namespace", ["GitHub Tools", "x" * 200, "é"])
def test_a_namespace_may_have_any_name(namespace):
    tools = [NAMESPACES[0] | {"name": namespace, "tools": [TOOL, TOOL | {"name": "g"}]}]
    seen = [tool.name for tool in declared(as_chat(request(tools=tools))["tools"])]
    assert len(set(seen)) == 2
    call = {"tool_calls": [FIRST | {"function": {"name": seen[1], "arguments": "{}"}}]}
    item = events([call], "tool_calls", tools=tools)[-1]["response"]["output"][0]
    assert (item["namespace"], item["name"]) == (namespace, "g")


@pytest.mark.parametrize("arguments", ['{"input": null}', '{"input": {"a": true}}', '{"patch": "x"}'])
def test_an_input_that_is_no_text_is_not_lost(arguments):
    call = {"tool_calls": [FIRST | {"function": {"name": "p", "arguments": arguments}}]}
    found = events([call], "tool_calls", tools=[{"type": "custom", "name": "p"}])
    assert found[-1]["response"]["output"][0]["input"] == arguments


def test_a_custom_tool_is_a_function_of_one_text():
    grammar = {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'}
    tool = {"type": "custom", "name": "patch", "description": "Patches.", "format": grammar}
    function = as_chat(request(tools=[tool]))["tools"][0]["function"]
    assert function["description"].startswith("Patches.")
    assert function["description"].endswith('start: "x"')
    assert function["parameters"]["required"] == ["input"]
    deltas = [
        {"tool_calls": [FIRST | {"function": {"name": "patch", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"input": "a\\nb"}'}}]},
    ]
    found = events(deltas, "tool_calls", tools=[tool])
    assert kinds(found)[2:-1] == [
        "output_item.added", "custom_tool_call_input.delta", "custom_tool_call_input.done", "output_item.done"
    ]  # fmt: skip
    item = found[-1]["response"]["output"][0]
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "patch", "a\nb")
    history = [item, {"type": "custom_tool_call_output", "call_id": "call_1", "output": "done"}]
    call, result = as_chat(request(tools=[tool], input=history))["messages"]
    assert json.loads(call["tool_calls"][0]["function"]["arguments"]) == {"input": "a\nb"}
    assert (result["role"], result["content"]) == ("tool", "done")


def test_what_is_said_beside_calls_stands_before_their_results_and_thoughts_add_up():
    def thought(text):
        return {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}

    items = [
        thought("one"),
        thought("two"),
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        thought("three"),
        {"type": "message", "role": "assistant", "content": "I look."},
        {"type": "function_call_output", "call_id": "c", "output": "r"},
        thought("four"),
        {"type": "message", "role": "assistant", "content": "Done."},
    ]
    call, result, last = as_chat(request(input=items))["messages"]
    assert (call["content"], call["reasoning"], result["content"]) == ("I look.", "one\ntwo\nthree", "r")
    assert (last["content"], last["reasoning"]) == ("Done.", "four")
    broken_off = [thought("lost"), {"role": "user", "content": "go on"}, {"role": "assistant", "content": "Yes."}]
    assert "reasoning" not in as_chat(request(input=broken_off))["messages"][1]


def test_thoughts_of_which_there_is_a_summary_alone_are_that():
    summary = [{"type": "summary_text", "text": "in short"}]
    said = [{"type": "reasoning_text", "text": "hm"}]
    answer = {"role": "assistant", "content": "Yes."}
    for fields, thought in (
        ({"summary": summary}, "in short"),
        ({"summary": summary, "content": None, "encrypted_content": "x"}, "in short"),
        ({"summary": summary, "content": said}, "hm"),
    ):
        items = [{"type": "reasoning", "id": "rs_1"} | fields, answer]
        assert as_chat(request(input=items))["messages"] == [answer | {"reasoning": thought}]


def test_a_failure_before_the_first_token_is_a_whole_stream():
    """Clients refuse any event before the first."""
    found = ResponseStream(request(), "m").fail(OverloadedError("The line is full."))
    assert kinds(found) == ["created", "in_progress", "failed"]


def test_a_failure_ends_the_stream_with_its_message():
    stream = ResponseStream(request(), "m")
    stream.start()
    stream.push({"content": "He"})
    last = stream.fail(OverloadedError("The line is full."))[-1]
    assert EVENT.validate_python(last).response.error.code == "rate_limit_exceeded"


def test_a_whole_answer_is_the_same_object():
    message = {
        "content": "x",
        "reasoning": "hm",
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    answer = {"model": "m", "choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": USAGE}
    response = Response.model_validate(as_response(request(tools=[TOOL]), answer))
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    assert response.output_text == "x"
    assert response.tools[0].name == "f"


def test_a_request_becomes_the_chat_request_that_asks_the_same():
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "go"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "r1"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "r2"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "done"}]},
        {"type": "message", "role": "developer", "content": "short"},
    ]
    schema = {"type": "json_schema", "name": "s", "schema": {"type": "object"}, "strict": True}
    chat = as_chat(
        request(
            input=items,
            instructions="Be kind.",
            max_output_tokens=5,
            tools=[
                TOOL,
                {"type": "namespace", "name": "n", "tools": [TOOL | {"name": "g"}]},
                {"type": "web_search"},
            ],
            tool_choice={"type": "function", "name": "f"},
            text={"format": schema},
            reasoning={"effort": "none"},
            top_k=3,
            store=False,
        )
    )
    messages = chat.pop("messages")
    assert [message["role"] for message in messages] == [
        "system", "user", "assistant", "tool", "tool", "assistant", "developer"
    ]  # fmt: skip
    assert messages[2]["reasoning"] == "hm"
    assert [call["id"] for call in messages[2]["tool_calls"]] == ["c1", "c2"]
    assert (messages[4]["tool_call_id"], messages[4]["content"]) == ("c2", "r2")
    assert [tool["function"]["name"] for tool in chat.pop("tools")] == ["f", "n__g"]
    assert chat == {
        "model": "m",
        "max_completion_tokens": 5,
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": True},
        },
        "reasoning_effort": "none",
        "top_k": 3,
    }
    assert as_chat(request()) == {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": 3}]}, "input[0].content"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
    ],
)
def test_what_cannot_be_served_is_refused_naming_the_field(fields, param):
    with pytest.raises(InvalidRequestError) as refused:
        as_chat(request(**fields))
    assert refused.value.param == param
