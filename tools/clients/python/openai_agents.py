"""OpenAI's Agents SDK, over chat completions and over responses."""

from __future__ import annotations

from typing import Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

from tools.clients.python.cases import MODEL, QUESTION, URL, Weather, run

set_tracing_disabled(True)
called: list[str] = []


@function_tool
def weather(city: Literal["Bern", "Oslo"]) -> str:
    """The weather in a city."""
    called.append(city)
    return f"Rain in {city}."


def agent(model, **fields):
    client = AsyncOpenAI(base_url=URL, api_key="none", max_retries=0)
    settings = ModelSettings(max_tokens=100, tool_choice="required" if "tools" in fields else None)
    return Agent(
        "reporter", instructions="Be brief.", model=model(MODEL, client), model_settings=settings, **fields
    )


async def calls_a_tool(model):
    called.clear()
    result = await Runner.run(agent(model, tools=[weather]), QUESTION, max_turns=4)
    assert called
    assert called[0] in ("Bern", "Oslo")
    assert result.final_output is not None


async def chat_text():
    assert (await Runner.run(agent(OpenAIChatCompletionsModel), QUESTION)).final_output


async def chat_tool():
    await calls_a_tool(OpenAIChatCompletionsModel)


async def chat_output_type():
    result = await Runner.run(agent(OpenAIChatCompletionsModel, output_type=Weather), QUESTION)
    assert isinstance(result.final_output, Weather)


async def chat_streamed():
    result = Runner.run_streamed(agent(OpenAIChatCompletionsModel, tools=[weather]), QUESTION, max_turns=4)
    kinds = [event.type async for event in result.stream_events()]
    assert "run_item_stream_event" in kinds


async def responses_tool():
    await calls_a_tool(OpenAIResponsesModel)


async def responses_output_type_streamed():
    result = Runner.run_streamed(agent(OpenAIResponsesModel, output_type=Weather), QUESTION)
    assert [event async for event in result.stream_events()]
    assert isinstance(result.final_output, Weather)


if __name__ == "__main__":
    run(
        "openai-agents",
        *(chat_text, chat_tool, chat_output_type, chat_streamed, responses_tool, responses_output_type_streamed),
    )
