"""History: conversations with tools, brought into the shape that a member's chat template can show."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from itertools import chain
from typing import Any

from pydantic_core import from_json

from alignment.errors import InvalidRequestError, field_error
from server.http.tools.calls import Tool
from server.http.tools.formats import Format
from server.http.tools.template import ToolSupport

log = logging.getLogger(__name__)


def checked(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages of a request as templates want them: arguments as mappings, results with the function's name.

    Contents are texts already.

    Raises:
        InvalidRequestError: a call that is none, or a result without its call.
    """
    known: dict[str, str] = {}
    out = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        clean = dict(message)
        if calls := message.get("tool_calls"):
            if message.get("role") != "assistant":
                raise InvalidRequestError(
                    f"{where}.tool_calls: only an assistant calls tools.", param=f"{where}.tool_calls"
                )
            clean["tool_calls"] = [
                _checked_call(call, f"{where}.tool_calls[{number}]") for number, call in enumerate(calls)
            ]
            known |= {call["id"]: call["function"]["name"] for call in clean["tool_calls"]}
        if message.get("role") == "tool":
            id = message.get("tool_call_id")
            if not isinstance(id, str) or id not in known:
                raise field_error(f"{where}.tool_call_id", "refers to no call of an assistant before it.")
            clean.setdefault("name", known[id])
        out.append(clean)
    return out


def shown(
    messages: Sequence[dict[str, Any]],
    tools: Sequence[Tool],
    support: ToolSupport,
    format: Format,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Checked messages, and the tools, for one member's template.

    What the template cannot show is written as text: tools into the system message, calls in `format` into the
    assistant's, results into a user's.

    Args:
        messages: as `checked` gives them.
        tools: of the request.
        support: of the member's template.
        format: the pivot's, in which the answer's calls will be read.
    """
    native = support.calls and support.format == format
    out = _nine(list(messages), format) if native else [_as_text(message, format) for message in messages]
    if native and not support.several:
        out = _one_by_one(out)
    if not native:
        out = _merged(out)
    if not tools:
        return out, None
    if native and support.tools:
        return out, [tool.as_dict() for tool in tools]
    return _instructed(out, format.instructions(tools)), None


def _checked_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise field_error(where, "should hold a function with a name.")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _read(arguments, where)
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise field_error(f"{where}.function.arguments", "should be the JSON text of an object.")
    if not isinstance(id := call.get("id"), str) or not id:
        raise field_error(f"{where}.id", "is missing.")
    return {"id": id, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _read(arguments: str, where: str) -> dict[str, Any]:
    """The arguments that a model wrote; none where they are no JSON object.

    Another server may have cut a call off in the middle: refused, the conversation could never go on.
    """
    try:
        read = from_json(arguments or "{}")
    except ValueError:
        read = None
    if isinstance(read, dict):
        return read
    log.info("%s.function.arguments is no JSON object; the call is shown without arguments", where)
    return {}


def _as_text(message: dict[str, Any], format: Format) -> dict[str, Any]:
    """A message without anything but a role and a text."""
    content = message["content"]
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    if calls := message.get("tool_calls"):
        written = [format.write(call["function"]["name"], call["function"]["arguments"]) for call in calls]
        content = "\n".join([*([content] if content else []), *written])
        return {"role": message["role"], "content": content}
    return message


def _merged(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring results, and what the user says next, as one message: templates insist on turns."""
    out: list[dict[str, Any]] = []
    for message in messages:
        if (
            out
            and message["role"] == out[-1]["role"] == "user"
            and out[-1]["content"].startswith("<tool_response>")
        ):
            out[-1] = out[-1] | {"content": f"{out[-1]['content']}\n{message['content']}"}
        else:
            out.append(message)
    return out


def _one_by_one(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with several calls as one after the other, each followed by its own result."""
    out: list[dict[str, Any]] = []
    rest = deque(messages)
    while rest:
        message = rest.popleft()
        calls = message.get("tool_calls") or []
        if len(calls) < 2:
            out.append(message)
            continue
        results: dict[str, deque[dict[str, Any]]] = {}  # of this message: a later one may use the same ids again
        while rest and rest[0]["role"] == "tool":
            results.setdefault(rest[0]["tool_call_id"], deque()).append(rest.popleft())
        for number, call in enumerate(calls):
            out.append(message | {"content": "" if number else message["content"], "tool_calls": [call]})
            if call["id"] in results:
                out.append(results[call["id"]].popleft())
                if not results[call["id"]]:
                    del results[call["id"]]
        out += chain.from_iterable(results.values())
    return out


def _nine(messages: list[dict[str, Any]], format: Format) -> list[dict[str, Any]]:
    """Ids of nine letters or digits for the templates that refuse others, the same for a call and its result."""
    if format.name not in ("mistral", "args"):
        return messages
    ids: dict[str, str] = {}

    def nine(id: str) -> str:
        fits = len(id) == 9 and id.isascii() and id.isalnum()
        return id if fits else ids.setdefault(id, f"{len(ids):09d}")

    out = []
    for message in messages:
        if calls := message.get("tool_calls"):
            message = message | {"tool_calls": [call | {"id": nine(call["id"])} for call in calls]}
        if message["role"] == "tool":
            message = message | {"tool_call_id": nine(message["tool_call_id"])}
        out.append(message)
    return out


def _instructed(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    if messages and messages[0]["role"] == "system":
        first = messages[0] | {"content": f"{messages[0]['content']}\n\n{text}".strip()}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]
