"""POST /v1/responses: the request, and the chat request that asks the same.

Nothing is stored. A model sees each tool as a function: one of a namespace as `NAMESPACE__NAME`, a custom tool as
one of a single text. Tools of other types, which a server would have to run itself, are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, Literal

from pydantic import Field

from alignment.errors import field_error
from server.http.errors import not_built, shorten, unknown_type
from server.http.protocol.common import Listed, RequestModel, expected, few

Input = Annotated[str | Listed[dict[str, Any]], expected("a string or a list of items"), few]
Choice = Annotated[str | dict[str, Any], expected('"auto", "none", "required" or an object that names a tool')]


class TextFields(RequestModel):
    """`text`: the shape of the answer's text."""

    format: dict[str, Any] | None = None


class ReasoningFields(RequestModel):
    """`reasoning`."""

    effort: str | None = None


class ResponsesRequest(RequestModel):
    """The body. Fields it does not name (sampling, fusion) mean what they mean in a chat request."""

    model: str | None = None
    input: Input
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    text: TextFields | None = None
    tools: Listed[dict[str, Any]] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningFields | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, Any] | None = None
    include: Listed[str] | None = None
    user: str | None = None


def as_chat(request: ResponsesRequest) -> dict[str, Any]:
    """The body of the chat request that asks the same.

    Raises:
        InvalidRequestError: state that is not kept, or an item or format that is not understood.
    """
    _require_stateless(request)
    messages, tools = _messages(request.input), list(callable_tools(request.tools))
    if request.instructions:
        messages.insert(0, {"role": "system", "content": request.instructions})
    chat: dict[str, Any] = {
        "model": request.model,
        "messages": messages,
        "max_completion_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stream": request.stream,
        "tools": [each.tool for each in tools] or None,
        "tool_choice": _choice(request.tool_choice, tools),
        "parallel_tool_calls": request.parallel_tool_calls,
        "reasoning_effort": request.reasoning.effort if request.reasoning else None,
        "response_format": _format(request.text),
        "truncate_prompt_tokens": -1 if request.truncation == "auto" else None,
        "user": request.user,
    }
    chat |= request.model_extra or {}
    return {name: value for name, value in chat.items() if value is not None}


def _require_stateless(request: ResponsesRequest) -> None:
    for name in ("previous_response_id", "conversation", "prompt"):
        if getattr(request, name):
            raise not_built(
                name,
                "refers to something stored, but this server stores nothing; send the whole conversation "
                "as input.",
            )
    if "message.output_text.logprobs" in (request.include or ()):
        raise not_built("include", "asks for log-probabilities; use /v1/chat/completions for them.")
    if request.background:
        raise not_built("background", "answers are stored, but this server stores nothing; leave it out.")


def _messages(given: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not given:
        raise field_error("input", "holds no items.")
    out: list[dict[str, Any]] = []
    called: set[str] = set()
    thoughts: list[str] = []
    for index, item in enumerate(given):
        where = f"input[{index}]"
        match item.get("type", "message"):
            case "message":
                role = item.get("role")
                if role not in ("user", "assistant", "system", "developer"):
                    raise field_error(
                        f"{where}.role", f"should be user, assistant, system or developer, not {shorten(role)}."
                    )
                text = _text(item.get("content"), f"{where}.content")
                if role == "assistant" and out and "tool_calls" in out[-1] and not out[-1]["content"]:
                    out[-1]["content"] = text  # said beside the calls, whose results come next
                else:
                    out.append({"role": role, "content": text})
                # What was thought before an answer that never came belongs to no other one.
                thoughts = _add_thoughts(out[-1], thoughts) if role == "assistant" else []
            case "function_call" | "custom_tool_call":
                call = _call(item, where)
                called.add(call["id"])
                if not out or out[-1]["role"] != "assistant":
                    out.append({"role": "assistant", "content": ""})
                thoughts = _add_thoughts(out[-1], thoughts)
                out[-1].setdefault("tool_calls", []).append(call)
            case "function_call_output" | "custom_tool_call_output":
                content = _text(item.get("output"), f"{where}.output")
                if item.get("call_id") not in called:
                    raise field_error(f"{where}.call_id", "refers to no call before it.")
                out.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
            case "reasoning":
                said = _text(item.get("content") or [], f"{where}.content")
                if text := said or _text(item.get("summary") or [], f"{where}.summary"):
                    thoughts.append(text)
            case kind:
                raise unknown_type(
                    where, kind, "but only messages, function calls, their outputs and reasoning are understood."
                )
    return out


def _add_thoughts(message: dict[str, Any], thoughts: list[str]) -> list[str]:
    """Add thoughts to those of the assistant's message that they come before; none are left."""
    if thoughts:
        message["reasoning"] = "\n".join([*filter(None, [message.get("reasoning")]), *thoughts])
    return []


def _call(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A call in the shape of chat completions, under the name that the model sees."""
    for name in ("name", "call_id"):
        if not isinstance(item.get(name), str) or not item[name]:
            raise field_error(f"{where}.{name}", "is missing.")
    given = "input" if item["type"] == "custom_tool_call" else "arguments"
    text = item.get(given)
    text = "" if text is None else text
    if not isinstance(text, str):
        raise field_error(f"{where}.{given}", "should be a string.")
    if given == "input":
        text = json.dumps({CUSTOM_INPUT: text}, ensure_ascii=False)
    function = {"name": _seen_name(item.get("namespace"), item["name"]), "arguments": text}
    return {"id": item["call_id"], "type": "function", "function": function}


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise field_error(where, "should be a string or a list of parts.")
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("input_text", "output_text", "text", "reasoning_text", "summary_text", "refusal"):
            raise unknown_type(f"{where}[{index}]", kind, "but only text is understood.")
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise field_error(f"{where}[{index}].text", "should be a string.")
        texts.append(text)
    return "\n".join(texts)


CUSTOM_INPUT = "input"
"""The one argument of the function that stands for a custom tool."""


@dataclass(frozen=True, slots=True)
class CallableTool:
    """A tool that a model may call: as a chat's `tool`, and as the client named it.

    Attributes:
        name: within its namespace.
        custom: whether its input is one text rather than arguments.
        place: where it stands in the request.
    """

    tool: dict[str, Any]
    name: str
    namespace: str | None
    custom: bool
    place: str


def callable_tools(
    tools: list[dict[str, Any]] | None, namespace: str | None = None, where: str = "tools"
) -> Iterator[CallableTool]:
    """The functions and custom tools among the tools at `where`, those of namespaces too."""
    for index, tool in enumerate(tools or ()):
        if not isinstance(tool, dict):  # those inside of namespaces are not checked yet
            continue
        kind, name, place = tool.get("type"), tool.get("name"), f"{where}[{index}]"
        if kind == "namespace" and isinstance(inner := tool.get("tools"), list):
            yield from callable_tools(inner, name if isinstance(name, str) else None, f"{place}.tools")
        elif kind in ("function", "custom"):
            function = {key: tool[key] for key in ("description", "strict") if tool.get(key) is not None}
            function["name"] = _seen_name(namespace, name) if isinstance(name, str) else name
            if kind == "custom":
                function["description"] = _described(tool)
                function["parameters"] = {
                    "type": "object",
                    "properties": {CUSTOM_INPUT: {"type": "string"}},
                    "required": [CUSTOM_INPUT],
                    "additionalProperties": False,
                }
            elif tool.get("parameters") is not None:
                function["parameters"] = tool["parameters"]
            seen = {"type": "function", "function": function}
            yield CallableTool(seen, str(name), namespace, kind == "custom", place)


def _described(tool: Mapping[str, Any]) -> str:
    """What a model is told of a custom tool: its description, and the grammar of its input as a text."""
    described, format = str(tool.get("description") or ""), tool.get("format")
    if isinstance(format, dict) and isinstance(grammar := format.get("definition"), str):
        described += f"\n\nThe input follows this grammar ({format.get('syntax') or 'lark'}):\n{grammar}"
    return described.strip()


def _seen_name(namespace: Any, name: str) -> str:
    """The name of a tool as the model sees it, which has only what names of tools may have."""
    if not isinstance(namespace, str) or not namespace:
        return name
    seen = re.sub(r"[^a-zA-Z0-9_.-]", "_", f"{namespace}__{name}")
    return seen if len(seen) <= 128 else f"{seen[:111]}_{sha256(seen.encode()).hexdigest()[:16]}"


def _choice(choice: str | dict[str, Any] | None, tools: list[CallableTool]) -> str | dict[str, Any] | None:
    """`tool_choice` of a chat. Typed clients cannot name a namespace: the only tool of that name is meant."""
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "allowed_tools":
        listed = choice.get("tools")
        if isinstance(listed, list):  # those that a server would have to run are left out, as they are of tools
            listed = [one for one in listed if not isinstance(one, dict) or _is_callable(one)]
            listed = [_named(one, tools) if isinstance(one, dict) else one for one in listed]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": listed}}
    if not _is_callable(choice):
        raise not_built("tool_choice", "should name a function or a custom tool: others are not served.")
    return _named(choice, tools)


def _is_callable(choice: Mapping[str, Any]) -> bool:
    return choice.get("type") in ("function", "custom")


def _named(choice: Mapping[str, Any], tools: list[CallableTool]) -> dict[str, Any]:
    """A choice of one tool as a chat's, by the name that the model sees."""
    name, namespace = choice.get("name"), choice.get("namespace")
    named = [tool for tool in tools if tool.name == name and namespace in (None, tool.namespace)]
    outside = [tool for tool in named if tool.namespace is None]
    if len(found := outside or named) == 1:
        name = found[0].tool["function"]["name"]
    return {"type": "function", "function": {"name": name}}


def _format(text: TextFields | None) -> dict[str, Any] | None:
    format = text.format if text else None
    match format.get("type") if format else "text":
        case "text":
            return None
        case "json_object":
            return {"type": "json_object"}
        case "json_schema":
            inner = {name: value for name, value in (format or {}).items() if name != "type" and value is not None}
            return {"type": "json_schema", "json_schema": inner}
        case kind:
            raise field_error(
                "text.format.type", f"should be text, json_object or json_schema, not {shorten(kind)}."
            )
