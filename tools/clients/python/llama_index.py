"""LlamaIndex's OpenAILike."""

from __future__ import annotations

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

from tools.clients.python.cases import MODEL, QUESTION, URL, Weather, run

CONNECTION = {"model": MODEL, "api_base": URL, "api_key": "none", "context_window": 1024, "max_retries": 0}
chat_model = OpenAILike(**CONNECTION, is_chat_model=True, is_function_calling_model=True, max_tokens=100)
HISTORY = [ChatMessage(role="user", content=QUESTION)]


def weather(city: str) -> str:
    """The weather in a city."""
    return f"Rain in {city}."


TOOL = FunctionTool.from_defaults(weather, fn_schema=Weather)


def complete():
    plain = OpenAILike(**CONNECTION, is_chat_model=False, max_tokens=20)
    assert plain.complete(f"{QUESTION}\n").text


def chat():
    assert chat_model.chat(HISTORY).message.content


def chat_streamed():
    assert list(chat_model.stream_chat(HISTORY))[-1].message.content


def chat_with_tools():
    answer = chat_model.chat_with_tools([TOOL], chat_history=HISTORY, tool_required=True)
    (call, *_) = chat_model.get_tool_calls_from_response(answer)
    assert call.tool_name == "weather"
    assert Weather.model_validate(call.tool_kwargs)


def structured_predict():
    answer = chat_model.structured_predict(Weather, PromptTemplate(QUESTION))
    assert isinstance(answer, Weather)


def structured_predict_with_a_schema():
    strict = OpenAILike(**CONNECTION, is_chat_model=True, should_use_structured_outputs=True, max_tokens=100)
    assert isinstance(strict.structured_predict(Weather, PromptTemplate(QUESTION)), Weather)


if __name__ == "__main__":
    run(
        "llama-index-llms-openai-like",
        *(complete, chat, chat_streamed, chat_with_tools, structured_predict, structured_predict_with_a_schema),
    )
