"""Instructor around OpenAI's SDK, in its modes for servers."""

from __future__ import annotations

import instructor
import openai

from tools.clients.python.cases import MESSAGES, MODEL, URL, Weather, run


def asked(mode, *, stream=False):
    sdk = openai.OpenAI(base_url=URL, api_key="none", max_retries=0)
    client = instructor.from_openai(sdk, mode=mode)
    fields = {"model": MODEL, "messages": list(MESSAGES), "response_model": Weather, "max_retries": 0}
    if stream:
        return list(client.chat.completions.create_partial(**fields, max_tokens=100))[-1]
    return client.chat.completions.create(**fields, max_tokens=100)


def tools():
    assert isinstance(asked(instructor.Mode.TOOLS), Weather)


def tools_streamed():
    assert asked(instructor.Mode.TOOLS, stream=True).city in ("Bern", "Oslo")


def json_schema():
    assert isinstance(asked(instructor.Mode.JSON_SCHEMA), Weather)


def tools_strict():
    assert isinstance(asked(instructor.Mode.TOOLS_STRICT), Weather)


if __name__ == "__main__":
    run("instructor", tools, tools_streamed, json_schema, tools_strict)
