"""LangChain's ChatOpenAI."""

from __future__ import annotations

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI

from tools.clients.python.cases import MODEL, QUESTION, TOOL, URL, Weather, is_call, run

chat = ChatOpenAI(model=MODEL, base_url=URL, api_key="none", max_retries=0, max_tokens=100)


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"Rain in {city}."


def invoke():
    answer = chat.invoke(QUESTION)
    assert answer.content
    assert answer.usage_metadata["output_tokens"]


def stream():
    assert "".join(chunk.content for chunk in chat.stream(QUESTION))


def bind_tools():
    bound = chat.bind_tools([TOOL], tool_choice="any")
    answer = bound.invoke(QUESTION)
    (call, *_) = answer.tool_calls
    assert is_call(call["name"], call["args"])
    history = [HumanMessage(QUESTION), answer]
    history += [ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]) for call in answer.tool_calls]
    assert chat.bind_tools([weather]).invoke(history).response_metadata["finish_reason"]


def bind_tools_streamed():
    whole = None
    for chunk in chat.bind_tools([TOOL], tool_choice="weather").stream(QUESTION):
        whole = chunk if whole is None else whole + chunk
    (call, *_) = whole.tool_calls
    assert is_call(call["name"], call["args"])


def with_structured_output():
    assert isinstance(chat.with_structured_output(Weather).invoke(QUESTION), Weather)


def with_structured_output_by_function_calling():
    structured = chat.with_structured_output(Weather, method="function_calling")
    assert isinstance(structured.invoke(QUESTION), Weather)


def responses():
    answer = ChatOpenAI(model=MODEL, base_url=URL, api_key="none", max_retries=0, use_responses_api=True)
    assert answer.invoke(QUESTION, max_tokens=60).text


def completions():
    model = OpenAI(model=MODEL, base_url=URL, api_key="none", max_retries=0, max_tokens=20)
    assert model.invoke(f"{QUESTION}\n")


if __name__ == "__main__":
    run(
        "langchain-openai",
        *(invoke, stream, bind_tools, bind_tools_streamed, with_structured_output),
        *(with_structured_output_by_function_calling, responses, completions),
    )
