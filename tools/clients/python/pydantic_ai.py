"""Pydantic AI with its OpenAI models."""

from __future__ import annotations

from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from tools.clients.python.cases import MODEL, QUESTION, URL, Weather, run

provider = OpenAIProvider(base_url=URL, api_key="none")
chat = OpenAIChatModel(MODEL, provider=provider)
SETTINGS = {"max_tokens": 100}


def text():
    assert Agent(chat, model_settings=SETTINGS).run_sync(QUESTION).output


async def text_streamed():
    async with Agent(chat, model_settings=SETTINGS).run_stream(QUESTION) as result:
        assert [piece async for piece in result.stream_text(delta=True)]
    assert result.usage.output_tokens if not callable(result.usage) else result.usage().output_tokens


def tool_output():
    agent = Agent(chat, output_type=ToolOutput(Weather), model_settings=SETTINGS)
    assert isinstance(agent.run_sync(QUESTION).output, Weather)


def native_output():
    agent = Agent(chat, output_type=NativeOutput(Weather), model_settings=SETTINGS)
    assert isinstance(agent.run_sync(QUESTION).output, Weather)


def function_tool():
    agent = Agent(chat, model_settings=SETTINGS)
    called = []

    @agent.tool_plain
    def weather(city: str) -> str:
        """The weather in a city."""
        called.append(city)
        return "Rain."

    assert agent.run_sync(QUESTION).output


def responses():
    agent = Agent(OpenAIResponsesModel(MODEL, provider=provider), output_type=Weather, model_settings=SETTINGS)
    assert isinstance(agent.run_sync(QUESTION).output, Weather)


if __name__ == "__main__":
    run("pydantic-ai-slim", text, text_streamed, tool_output, native_output, function_tool, responses)
