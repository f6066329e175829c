"""Anthropic's SDK."""

from __future__ import annotations

from typing import Literal

import anthropic

from tools.clients.python.cases import MESSAGES, MODEL, PARAMETERS, ROOT, Weather, is_call, run

client = anthropic.Anthropic(base_url=ROOT, api_key="none", max_retries=0)
ANY = {"type": "any", "disable_parallel_tool_use": True}
TOOL = {"name": "weather", "description": "The weather in a city.", "input_schema": PARAMETERS}


def message():
    answer = client.messages.create(model=MODEL, messages=MESSAGES, system="Be brief.", max_tokens=30)
    assert answer.content[0].text
    assert answer.usage.output_tokens


def message_streamed():
    with client.messages.stream(model=MODEL, messages=MESSAGES, max_tokens=30) as stream:
        text = "".join(stream.text_stream)
        answer = stream.get_final_message()
    assert text == answer.content[0].text
    assert answer.stop_reason in ("end_turn", "max_tokens")


def parse():
    answer = client.messages.parse(model=MODEL, messages=MESSAGES, max_tokens=60, output_format=Weather)
    assert isinstance(answer.parsed_output, Weather)


def tools():
    answer = client.messages.create(model=MODEL, messages=MESSAGES, tools=[TOOL], tool_choice=ANY, max_tokens=80)
    assert answer.stop_reason == "tool_use"
    call = answer.content[-1]
    assert is_call(call.name, call.input)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Rain."}
    history = [
        *MESSAGES,
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [result]},
    ]
    again = client.messages.create(model=MODEL, messages=history, tools=[TOOL], max_tokens=20)
    assert again.stop_reason


def tools_streamed():
    with client.messages.stream(
        model=MODEL,
        messages=MESSAGES,
        tools=[TOOL],
        tool_choice={"type": "tool", "name": "weather"},
        max_tokens=80,
    ) as stream:
        answer = stream.get_final_message()
    assert is_call(answer.content[-1].name, answer.content[-1].input)


def tool_runner():
    """Its second request leaves the history to a server that keeps it; this one asks for all of it."""
    asked = []

    @anthropic.beta_tool
    def weather(city: Literal["Bern", "Oslo"]) -> str:
        """The weather in a city."""
        asked.append(city)
        return "Rain."

    runner = client.beta.messages.tool_runner(
        model=MODEL, messages=MESSAGES, tools=[weather], tool_choice=ANY, max_tokens=80, max_iterations=2
    )
    assert runner.until_done().stop_reason == "tool_use"
    assert asked


def count_tokens():
    assert client.messages.count_tokens(model=MODEL, messages=MESSAGES).input_tokens > 5


def errors():
    kind = None
    try:
        client.messages.create(model="no-such-model", messages=MESSAGES, max_tokens=5)
    except anthropic.NotFoundError as error:
        kind = error.body["error"]["type"]
    assert kind == "not_found_error"


if __name__ == "__main__":
    run("anthropic", message, message_streamed, parse, tools, tools_streamed, tool_runner, count_tokens, errors)
