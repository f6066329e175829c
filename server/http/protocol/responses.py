"""POST /v1/responses: the request, and the chat request that asks the same.

Nothing is stored. Tools other than functions are left out, and those of a namespace are taken one by one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from alignment.errors import field_error
from server.http.errors import not_built, shorten, unknown_type
from server.http.protocol.common import Listed, RequestModel, expected

Input = Annotated[str | Listed[dict[str, Any]], expected("a string or a list of items")]
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
    truncation: str | None = None
    metadata: dict[str, Any] | None = None
    include: Listed[str] | None = None
    user: str | None = None


def as_chat(request: ResponsesRequest) -> dict[str, Any]:
    """The body of the chat request that asks the same.

    Raises:
        InvalidRequestError: state that is not kept, or an item or format that is not understood.
    """
    _require_stateless(request)
    messages = _messages(request.input)
    if request.instructions:
        messages.insert(0, {"role": "system", "content": request.instructions})
    chat: dict[str, Any] = {
        "model": request.model,
        "messages": messages,
        "max_completion_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stream": request.stream,
        "tools": functions(request.tools) or None,
        "tool_choice": _choice(request.tool_choice),
        "parallel_tool_calls": request.parallel_tool_calls,
        "reasoning_effort": request.reasoning.effort if request.reasoning else None,
        "response_format": _format(request.text),
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
    if request.truncation not in (None, "disabled"):
        raise not_built(
            "truncation", 'should be "disabled": this server never leaves out parts of a conversation.'
        )


def _messages(given: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not given:
        raise field_error("input", "holds no items.")
    out: list[dict[str, Any]] = []
    called: set[str] = set()
    reasoning = ""
    for index, item in enumerate(given):
        where = f"input[{index}]"
        match item.get("type", "message"):
            case "message":
                role = item.get("role")
                if role not in ("user", "assistant", "system", "developer"):
                    raise field_error(
                        f"{where}.role", f"should be user, assistant, system or developer, not {shorten(role)}."
                    )
                message = {"role": role, "content": _text(item.get("content"), f"{where}.content")}
                if role == "assistant" and reasoning:
                    message["reasoning"], reasoning = reasoning, ""
                out.append(message)
            case "function_call":
                function = {"name": item.get("name"), "arguments": _arguments(item, where)}
                called.add(str(item.get("call_id") or item.get("id")))
                call = {"id": item.get("call_id") or item.get("id"), "type": "function", "function": function}
                if not out or out[-1]["role"] != "assistant":
                    out.append({"role": "assistant", "content": ""})
                if reasoning:
                    out[-1]["reasoning"], reasoning = reasoning, ""
                out[-1].setdefault("tool_calls", []).append(call)
            case "function_call_output":
                content = _text(item.get("output"), f"{where}.output")
                if item.get("call_id") not in called:
                    raise field_error(f"{where}.call_id", "refers to no function_call before it.")
                out.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
            case "reasoning":
                reasoning = _text(item.get("content") or [], f"{where}.content")
            case kind:
                raise unknown_type(
                    where, kind, "but only messages, function calls, their outputs and reasoning are understood."
                )
    return out


def _arguments(item: Mapping[str, Any], where: str) -> str:
    """The arguments of a call, which are JSON text of an object."""
    for name in ("name", "call_id"):
        if not isinstance(item.get(name), str) or not item[name]:
            raise field_error(f"{where}.{name}", "is missing.")
    arguments = item.get("arguments") or "{}"
    try:
        read = json.loads(arguments) if isinstance(arguments, str) else None
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        raise field_error(f"{where}.arguments", "should be the JSON text of an object.")
    return str(arguments)


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise field_error(where, "should be a string or a list of parts.")
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("input_text", "output_text", "text", "reasoning_text", "refusal"):
            raise unknown_type(f"{where}[{index}]", kind, "but only text is understood.")
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise field_error(f"{where}[{index}].text", "should be a string.")
        texts.append(text)
    return "\n".join(texts)


def functions(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """The functions among the tools, in the shape of chat completions."""
    out = []
    for tool in tools or ():
        if tool.get("type") == "namespace" and isinstance(inner := tool.get("tools"), list):
            out += functions([each for each in inner if isinstance(each, dict)])
        elif tool.get("type") == "function":
            names = ("name", "description", "parameters", "strict")
            function = {name: tool[name] for name in names if tool.get(name) is not None}
            out.append({"type": "function", "function": function})
    return out


def _choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") != "function":
        raise not_built("tool_choice", "should name a function: other tools are not served.")
    return {"type": "function", "function": {"name": choice.get("name")}}


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
