"""The event sequences, read by the SDKs' own stream helpers."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from server.http.protocol.messages_answer import MessageStream
from server.http.protocol.responses import ResponsesRequest
from server.http.protocol.responses_answer import ResponseStream
from server.http.tools.calls import Tool, ToolCall
from server.http.tools.formats import FORMATS
from server.http.tools.parser import ToolParser

USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
CALLS = ['{"name": "f", "arguments": {"a": 1}}', '{"name": "g"}']
TEXT = "Let me see.\n" + "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in CALLS)


def deltas():
    """The chat deltas of an answer with a text and two calls, in pieces of three characters."""
    parser = ToolParser(FORMATS["hermes"], [Tool("f"), Tool("g")])
    pieces = [piece for at in range(0, len(TEXT), 3) for piece in parser.push(TEXT[at : at + 3])] + parser.finish()
    out = [{"role": "assistant", "content": ""}]
    for piece in pieces:
        if isinstance(piece, ToolCall):
            out += [{"tool_calls": calls} for calls in piece.deltas()]
        else:
            out.append({"content": piece})
    return out


def served(library, events, *, named):
    """An HTTP client that answers every request with `events`."""
    lines = "".join(
        (f"event: {event['type']}\n" if named else "") + f"data: {json.dumps(event)}\n\n" for event in events
    )
    body = lines if named else lines + "data: [DONE]\n\n"
    headers = {"content-type": "text/event-stream"}
    return library.Client(
        transport=library.MockTransport(lambda request: library.Response(200, text=body, headers=headers))
    )


def client_of(events, *, named=True):
    for library in _libraries():
        try:
            http = served(library, events, named=named)
            return openai.OpenAI(api_key="x", base_url="http://test/v1", http_client=http)
        except TypeError:
            continue
    pytest.skip("no HTTP library that this version of openai takes")


def _libraries():
    found = [httpx]
    try:
        import httpx2

        found.insert(0, httpx2)
    except ImportError:
        pass
    return found


def test_openai_reads_tool_calls_from_chat_chunks():
    def chunk(delta, finish=None):
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}

    chunks = [*(chunk(delta) for delta in deltas()), chunk({}, "tool_calls")]
    client = client_of(chunks, named=False)
    with client.chat.completions.stream(model="m", messages=[{"role": "user", "content": "hi"}]) as stream:
        message = stream.get_final_completion().choices[0].message
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls]
    assert (message.content, calls) == ("Let me see.", [("f", {"a": 1}), ("g", {})])


def test_openai_reads_the_events_of_a_response():
    tools = [{"type": "function", "name": name, "parameters": {}} for name in "fg"]
    stream = ResponseStream(ResponsesRequest(model="m", input="hi", tools=tools), "m")
    events = stream.start() + [event for delta in deltas() for event in stream.push(delta)]
    client = client_of(events + stream.finish("tool_calls", USAGE))
    with client.responses.stream(model="m", input="hi") as read:
        response = read.get_final_response()
    assert response.output_text == "Let me see."
    calls = [(item.name, item.arguments) for item in response.output if item.type == "function_call"]
    assert calls == [("f", '{"a": 1}'), ("g", "{}")]


def test_anthropic_reads_the_events_of_a_message():
    anthropic = pytest.importorskip("anthropic")
    stream = MessageStream("m", input_tokens=3)
    events = stream.start() + [event for delta in deltas() for event in stream.push(delta)]
    events += stream.finish("tool_calls", USAGE)
    for library in _libraries():
        try:
            http = served(library, events, named=True)
            client = anthropic.Anthropic(api_key="x", base_url="http://test", http_client=http)
            break
        except TypeError:
            continue
    else:
        pytest.skip("no HTTP library that this version of anthropic takes")
    with client.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}]) as read:
        message = read.get_final_message()
    assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]
    assert (message.content[1].name, message.content[1].input) == ("f", {"a": 1})
    assert (message.stop_reason, message.usage.output_tokens) == ("tool_use", 4)
