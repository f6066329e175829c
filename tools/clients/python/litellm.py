"""LiteLLM, as a gateway calls an OpenAI-compatible server."""

from __future__ import annotations

from typing import Any

import litellm

from tools.clients.python.cases import MESSAGES, MODEL, TOOL, URL, Weather, is_call, run

TO: dict[str, Any] = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": "none", "num_retries": 0}
litellm.suppress_debug_info = True


def completion():
    answer = litellm.completion(**TO, messages=MESSAGES, max_tokens=30)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens


def completion_streamed():
    chunks = list(litellm.completion(**TO, messages=MESSAGES, max_tokens=30, stream=True))
    whole = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    assert whole.choices[0].message.content


def tools():
    answer = litellm.completion(
        **TO, messages=MESSAGES, tools=[TOOL], tool_choice="required", parallel_tool_calls=False
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    call = answer.choices[0].message.tool_calls[0]
    assert is_call(call.function.name, call.function.arguments)


def tools_streamed():
    chunks = list(
        litellm.completion(
            **TO, messages=MESSAGES, tools=[TOOL], tool_choice="required", max_tokens=80, stream=True
        )
    )
    (call, *_) = litellm.stream_chunk_builder(chunks, messages=MESSAGES).choices[0].message.tool_calls
    assert is_call(call.function.name, call.function.arguments)


def response_format():
    answer = litellm.completion(**TO, messages=MESSAGES, response_format=Weather, max_tokens=60)
    Weather.model_validate_json(answer.choices[0].message.content)


def responses():
    answer = litellm.responses(**TO, input="Hello", max_output_tokens=30)
    assert answer.output[0].content[0].text


async def anthropic_messages():
    answer = await litellm.anthropic.messages.acreate(**TO, messages=MESSAGES, max_tokens=30)
    assert answer["content"][0]["text"]


def context_window_exception():
    try:
        litellm.completion(**TO, messages=[{"role": "user", "content": "apples " * 20_000}], max_tokens=5)
    except litellm.ContextWindowExceededError:
        return
    raise AssertionError("a prompt beyond the context was answered")


if __name__ == "__main__":
    run(
        "litellm",
        *(completion, completion_streamed, tools, tools_streamed, response_format),
        *(responses, anthropic_messages, context_window_exception),
    )
