"""Cases: the requests that a client is run with, and a JSON line for how each one went.

The server is named by the variables TUTTI_URL and TUTTI_MODEL. The demo's models know nothing of tools, so what
is asked for are answers that a grammar enforces, and what is checked is their shape.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

ROOT = os.environ.get("TUTTI_URL", "http://127.0.0.1:8000")
URL = f"{ROOT}/v1"
MODEL = os.environ.get("TUTTI_MODEL", "tutti-demo")
QUESTION = "Anna has 3 apples and gets 4 more. How many apples does she have?"
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]


class Weather(BaseModel):
    """The weather in a city."""

    model_config = ConfigDict(extra="forbid")

    city: Literal["Bern", "Oslo"]
    sunny: bool


PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Bern", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION: dict[str, Any] = {"name": "weather", "description": "The weather in a city.", "parameters": PARAMETERS}
TOOL: dict[str, Any] = {"type": "function", "function": FUNCTION}


def is_call(name: str, arguments: str | dict[str, Any]) -> bool:
    """Whether this is a call of the tool with arguments that its schema allows."""
    parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    return name == "weather" and parsed.keys() == {"city"} and parsed["city"] in ("Bern", "Oslo")


def run(package: str, *cases: Callable[[], Any]) -> None:
    """Run the cases of a package, which are functions or coroutines, and print a line for each."""
    for case in cases:
        failed = None
        try:
            result = case()
            if inspect.iscoroutine(result):
                asyncio.run(result)
        except Exception as error:
            where = error.__traceback__
            while where is not None and where.tb_next is not None and where.tb_frame.f_code is not case.__code__:
                where = where.tb_next
            line = where.tb_lineno if where is not None else 0
            failed = f"line {line}: {type(error).__name__}: {error}"[:600]
        name = case.__name__.replace("_", " ")
        print(
            json.dumps({"client": package, "version": version(package), "case": name, "failed": failed}),
            flush=True,
        )
