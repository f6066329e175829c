"""OpenAI's SDK."""

from __future__ import annotations

import openai

from tools.clients.python.cases import FUNCTION, MESSAGES, MODEL, QUESTION, TOOL, URL, Weather, is_call, run

client = openai.OpenAI(base_url=URL, api_key="none", max_retries=0)
RESPONSES_TOOL = {"type": "function", "strict": True, **FUNCTION}


def models():
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


def chat():
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=30, n=2, seed=1)
    assert all(choice.message.content for choice in answer.choices)
    assert len(answer.choices) == 2
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def chat_streamed():
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            max_tokens=30,
            stream=True,
            stream_options={"include_usage": True},
            logprobs=True,
            top_logprobs=3,
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage.completion_tokens
    assert any(chunk.choices and chunk.choices[0].logprobs for chunk in chunks)


def completions():
    answer = client.completions.create(
        model=MODEL, prompt=[QUESTION, "Hello"], max_tokens=10, logprobs=2, echo=True
    )
    assert [choice.text.startswith(text) for choice, text in zip(answer.choices, (QUESTION, "Hello"), strict=True)]
    assert answer.choices[1].logprobs.token_logprobs[0] is None


def parse():
    answer = client.chat.completions.parse(model=MODEL, messages=MESSAGES, response_format=Weather, max_tokens=60)
    assert isinstance(answer.choices[0].message.parsed, Weather)


def stream_helper():
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES, response_format=Weather) as stream:
        events = {event.type for event in stream}
        answer = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= events
    assert isinstance(answer.choices[0].message.parsed, Weather)


def tools():
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, tools=[TOOL], tool_choice="required", parallel_tool_calls=False
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    call = choice.message.tool_calls[0]
    assert is_call(call.function.name, call.function.arguments)
    history = [*MESSAGES, choice.message, *results(choice.message.tool_calls)]
    again = client.chat.completions.create(model=MODEL, messages=history, tools=[TOOL], max_tokens=20)
    assert again.choices[0].finish_reason


def results(calls):
    return [{"role": "tool", "tool_call_id": call.id, "content": "Rain."} for call in calls]


def tools_streamed():
    named = {"type": "function", "function": {"name": "weather"}}
    strict = {"type": "function", "function": {**FUNCTION, "strict": True}}
    with client.chat.completions.stream(
        model=MODEL, messages=MESSAGES, tools=[strict], tool_choice=named, max_tokens=80
    ) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        answer = stream.get_final_completion()
    assert done
    assert done[0].name == "weather"
    assert is_call(done[0].name, answer.choices[0].message.tool_calls[0].function.parsed_arguments)


def responses():
    answer = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=200, store=False)
    assert answer.output_text
    assert answer.status in ("completed", "incomplete")


def responses_parse():
    answer = client.responses.parse(model=MODEL, input=MESSAGES, text_format=Weather)
    assert isinstance(answer.output_parsed, Weather)


def responses_streamed():
    with client.responses.stream(model=MODEL, input=QUESTION, text_format=Weather) as stream:
        kinds = [event.type for event in stream]
        answer = stream.get_final_response()
    assert kinds[0] == "response.created"
    assert "response.output_text.delta" in kinds
    assert isinstance(answer.output_parsed, Weather)


def responses_tools():
    with client.responses.stream(
        model=MODEL, input=QUESTION, tools=[RESPONSES_TOOL], tool_choice="required"
    ) as stream:
        answer = stream.until_done().get_final_response()
    call = answer.output[0]
    assert call.type == "function_call"
    assert is_call(call.name, call.arguments)
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}
    again = client.responses.create(
        model=MODEL, input=[*MESSAGES, *answer.output, output], tools=[RESPONSES_TOOL], max_output_tokens=30
    )
    assert again.output


def errors():
    code = None
    try:
        client.chat.completions.create(model="no-such-model", messages=MESSAGES)
    except openai.NotFoundError as error:
        code = error.code
    assert code == "model_not_found"


if __name__ == "__main__":
    run(
        "openai",
        *(models, chat, chat_streamed, completions, parse, stream_helper, tools, tools_streamed),
        *(responses, responses_parse, responses_streamed, responses_tools, errors),
    )
