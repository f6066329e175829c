"""Tools and tool calls: what requests declare, and the deltas that answers are made of."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from alignment.errors import InvalidRequestError, field_error

MOST_TOOLS = 512  # OpenAI takes 128; agents with several servers of tools declare more
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")  # Anthropic's length, twice OpenAI's
_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a request declares; `parameters` is a JSON schema.

    Arguments follow the schema as far as that can be enforced; where `strict`, one that cannot is refused.
    """

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    strict: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the arguments; any object where the request gives none."""
        return self.parameters or {"type": "object", "properties": {}, "additionalProperties": False}

    def as_dict(self) -> dict[str, Any]:
        """The shape that chat templates know."""
        function = {"name": self.name, "description": self.description, "parameters": self.schema}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model has made; `arguments` is JSON text, "{}" where there are none."""

    index: int
    id: str
    name: str
    arguments: str

    def as_dict(self) -> dict[str, Any]:
        """An entry of `message.tool_calls`."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }

    def deltas(self) -> list[list[dict[str, Any]]]:
        """The `delta.tool_calls` of two chunks: id, type and name are in the first alone."""
        opening = {"index": self.index, "id": self.id, "type": "function"}
        return [
            [opening | {"function": {"name": self.name, "arguments": ""}}],
            [{"index": self.index, "function": {"arguments": self.arguments}}],
        ]


def new_id() -> str:
    """An id as OpenAI's look."""
    return "call_" + secrets.token_hex(12)


def short_id() -> str:
    """An id of nine letters and digits; Mistral's templates refuse all others."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


def arguments_text(arguments: Any) -> str | None:
    """The arguments that a model wrote, as the JSON text of an object; None where they are none."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            return None
    if arguments is None:
        return "{}"
    if not isinstance(arguments, dict):
        return None
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return None
    # JSON may escape half of a surrogate pair, which has no UTF-8 and which many parsers refuse: U+FFFD instead.
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def declared(tools: Iterable[Any] | None) -> list[Tool]:
    """The tools of a chat request.

    Raises:
        InvalidRequestError: one that is no function, has a bad or repeated name, or parameters that are no schema.
    """
    found: dict[str, Tool] = {}
    for index, tool in enumerate(tools or ()):
        where = f"tools[{index}]"
        if index >= MOST_TOOLS:
            raise field_error("tools", f"holds more than {MOST_TOOLS} tools; send fewer.")
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type", "function") != "function":
            raise field_error(where, 'should be of the type "function" and hold a function.')
        name, description = function.get("name"), function.get("description")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise field_error(
                f"{where}.function.name", "should be 1 to 128 letters, digits, dots, dashes or underscores."
            )
        if name in found:
            raise field_error(f"{where}.function.name", f"repeats {name}.")
        parameters = function.get("parameters")
        if parameters is not None and (
            not isinstance(parameters, dict) or parameters.get("type", "object") != "object"
        ):
            raise field_error(f"{where}.function.parameters", "should be the JSON schema of an object.")
        if not isinstance((parameters or {}).get("properties") or {}, dict):
            raise field_error(f"{where}.function.parameters.properties", "should be an object of schemas.")
        required = (parameters or {}).get("required") or []
        if not isinstance(required, list) or not all(isinstance(each, str) for each in required):
            raise field_error(f"{where}.function.parameters.required", "should be a list of names.")
        if description is not None and not isinstance(description, str):
            raise InvalidRequestError(f"{where}.function.description should be a text.", param=where)
        found[name] = Tool(name, description or "", dict(parameters or {}), function.get("strict") is True)
    return list(found.values())
