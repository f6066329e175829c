"""POST /v1/messages and /v1/messages/count_tokens: the requests, and the chat requests that ask the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from alignment.errors import field_error
from server.http.errors import not_built, shorten, unknown_type
from server.http.protocol.common import Listed, RequestModel, expected, few

Blocks = Annotated[str | Listed[dict[str, Any]], expected("a string or a list of content blocks")]


class TurnMessage(RequestModel):
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: Blocks


class Thinking(RequestModel):
    """`thinking`, with the most tokens that it may take."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=1)] | None = None


class OutputConfig(RequestModel):
    """`output_config`."""

    effort: str | None = None
    format: dict[str, Any] | None = None


class ContextManagement(RequestModel):
    """`context_management`: what the server is to leave out of a conversation."""

    edits: Listed[dict[str, Any]] | None = None


class CountTokensRequest(RequestModel):
    """A conversation whose tokens are counted. Fields it does not name mean what they mean in a chat request."""

    model: str | None = None
    messages: Annotated[Listed[TurnMessage], Field(min_length=1), few]
    system: Blocks | None = None
    tools: Listed[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: dict[str, Any] | None = None  # the older place of output_config.format
    context_management: ContextManagement | None = None
    thread: Any = None


class MessagesRequest(CountTokensRequest):
    """A conversation that is answered."""

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: Listed[str] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: int | None = None
    metadata: dict[str, Any] | None = None


_ACCOUNTING = "x-anthropic-billing-header"

THREAD_UNSUPPORTED = "thread_unsupported_request"
"""The code of a request that leaves its history to the server. Anthropic's SDKs send it again, with all of it."""

# Fields of Anthropic's that change no answer: of `fallbacks`, because no model here declines by policy.
_IGNORED = frozenset(
    {
        "betas",
        "billing_policy",
        "cache_control",
        "diagnostics",
        "fallback_credit_token",
        "fallbacks",
        "inference_geo",
        "service_tier",
        "speed",
    }
)

# Fields of Anthropic's that would change it.
_UNBUILT = {
    "compaction": "should be left out: this server summarizes no conversations.",
    "container": "should be left out: this server runs no code and has no skills.",
    "mcp_servers": "should be left out: this server calls no others; give their tools in tools.",
}


def _is_prefill(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the conversation ends with the beginning of the answer, which goes on from there."""
    last = messages[-1] if messages else {}
    return last.get("role") == "assistant" and isinstance(last.get("content"), str) and not last.get("tool_calls")


def as_chat(request: CountTokensRequest) -> dict[str, Any]:
    """The body of the chat request that asks the same.

    Raises:
        InvalidRequestError: a block, tool or choice that is not understood.
    """
    if request.thread is not None:
        why = "should be left out: this server keeps no conversations; send the whole one in messages."
        raise field_error("thread", why, code=THREAD_UNSUPPORTED)
    _require_whole(request.context_management)
    messages: list[dict[str, Any]] = []
    if system := _system(request.system or "", "system"):
        messages.append({"role": "system", "content": system})
    called: set[str] = set()
    for index, message in enumerate(request.messages):
        messages += _turn(message, f"messages[{index}].content", called)
    chat: dict[str, Any] = {
        "model": request.model,
        "messages": messages,
        "tools": _tools(request.tools),
        "reasoning_effort": _effort(request),
        "response_format": _format(request),
        "chat_template_kwargs": _thinks(request.thinking),
    }
    if _is_prefill(messages):
        chat |= {"continue_final_message": True, "add_generation_prompt": False}
    if request.tool_choice:
        chat |= _choice(request.tool_choice)
    if isinstance(request, MessagesRequest):
        chat |= {
            "max_tokens": request.max_tokens,
            "thinking_token_budget": _budget(request),
            "stop": request.stop_sequences or None,
            "stream": request.stream,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
        }
    extra = {name: value for name, value in (request.model_extra or {}).items() if name not in _IGNORED}
    for name, why in _UNBUILT.items():
        if extra.pop(name, None):
            raise not_built(name, why)
    if isinstance(given := extra.get("chat_template_kwargs"), dict | None):
        extra["chat_template_kwargs"] = {**(chat["chat_template_kwargs"] or {}), **(given or {})} or None
    chat |= extra
    return {name: value for name, value in chat.items() if value is not None}


def _require_whole(management: ContextManagement | None) -> None:
    """Refuse to leave out parts of the conversation.

    Thoughts of earlier turns are excepted: templates decide on them, and Claude Code asks for that by default.
    """
    for index, edit in enumerate((management and management.edits) or ()):
        if not str(edit.get("type")).startswith("clear_thinking"):
            why = "but this server leaves out nothing of a conversation; shorten it before it is sent."
            raise unknown_type(f"context_management.edits[{index}]", edit.get("type"), why)


def _turn(message: TurnMessage, where: str, called: set[str]) -> list[dict[str, Any]]:
    """A message as chat messages: results of tools come before what the user says beside them.

    `called` are the ids of the calls so far; those of this message are added.
    """
    if message.role == "system":
        system = _system(message.content, where)
        return [{"role": "system", "content": system}] if system else []
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    results: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    texts: list[str] = []
    thoughts: list[str] = []
    for index, block in enumerate(message.content):
        at = f"{where}[{index}]"
        match block.get("type"):
            case "text":
                texts.append(_string(block, "text", at))
            case "thinking":
                thoughts.append(_string(block, "thinking", at))
            case "redacted_thinking":
                pass
            case "tool_use" if message.role == "assistant":
                if not isinstance(given := block.get("input") or {}, dict):
                    raise field_error(f"{at}.input", "should be a JSON object.")
                if not (id := _string(block, "id", at)):
                    raise field_error(f"{at}.id", "is empty.")
                called.add(id)
                function = {"name": _string(block, "name", at), "arguments": json.dumps(given, ensure_ascii=False)}
                calls.append({"id": id, "type": "function", "function": function})
            case "tool_result" if message.role == "user":
                content = _text(block.get("content") or "", f"{at}.content")
                content = f"Error: {content}" if block.get("is_error") else content
                if (id := _string(block, "tool_use_id", at)) not in called:
                    raise field_error(f"{at}.tool_use_id", "refers to no tool_use before it.")
                results.append({"role": "tool", "tool_call_id": id, "content": content})
            case kind:
                raise unknown_type(at, kind, f"which a message of role {message.role} cannot hold here.")
    if not (texts or calls) and results:
        return results
    said: dict[str, Any] = {"role": message.role, "content": "\n".join(texts)}
    if thoughts:
        said["reasoning"] = "\n".join(thoughts)
    if calls:
        said["tool_calls"] = calls
    return [*results, said]


def _system(content: Any, where: str) -> str:
    """A text of the operator's, without the line of accounting that a client puts before it.

    That line is another one with each request: kept, it would make every member read the whole prompt anew.
    """
    texts = [
        text.partition("\n")[2].lstrip("\n") if text.startswith(_ACCOUNTING) else text
        for text in _texts(content, where)
    ]
    return "\n".join(filter(None, texts))


def _string(block: Mapping[str, Any], name: str, where: str) -> str:
    if not isinstance(value := block.get(name), str):
        raise field_error(f"{where}.{name}", "should be a string.")
    return value


def _text(content: Any, where: str) -> str:
    return "\n".join(_texts(content, where))


def _texts(content: Any, where: str) -> list[str]:
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise field_error(where, "should be a string or a list of content blocks.")
    texts = []
    for index, block in enumerate(content):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind != "text":
            raise unknown_type(f"{where}[{index}]", kind, "but only text is understood.")
        texts.append(_string(block, "text", f"{where}[{index}]"))
    return texts


def _tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    out = []
    for index, tool in enumerate(tools or ()):
        if tool.get("type") not in (None, "custom"):
            why = "but only tools with an input_schema are served."
            raise unknown_type(f"tools[{index}]", tool["type"], why)
        function = {"name": tool.get("name"), "parameters": tool.get("input_schema")}
        function |= {name: tool[name] for name in ("description", "strict") if tool.get(name)}
        out.append({"type": "function", "function": function})
    return out or None


def _choice(choice: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    match choice.get("type"):
        case "auto" | "none" as same:
            fields["tool_choice"] = same
        case "any":
            fields["tool_choice"] = "required"
        case "tool":
            fields["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
        case kind:
            raise field_error("tool_choice.type", f"should be auto, any, tool or none, not {shorten(kind)}.")
    if choice.get("disable_parallel_tool_use"):
        fields["parallel_tool_calls"] = False
    return fields


def _effort(request: CountTokensRequest) -> str | None:
    if request.thinking and request.thinking.type == "disabled":
        return "none"
    return request.output_config.effort if request.output_config else None


def _thinks(thinking: Thinking | None) -> dict[str, Any] | None:
    if thinking is None or thinking.type == "disabled":
        return None
    return {"enable_thinking": True, "thinking": True}


def _budget(request: MessagesRequest) -> int | None:
    """The most tokens of thoughts.

    Raises:
        InvalidRequestError: there is none though thinking is enabled, or it leaves no token for the answer.
    """
    param, thinking = "thinking.budget_tokens", request.thinking
    if thinking is None or thinking.type == "disabled":
        return None
    if thinking.budget_tokens is None and thinking.type == "enabled":
        raise field_error(param, "is missing, which thinking of type enabled needs.")
    if thinking.budget_tokens is not None and thinking.budget_tokens >= request.max_tokens:
        raise field_error(param, f"should be less than max_tokens, which is {shorten(request.max_tokens)}.")
    return thinking.budget_tokens


def _format(request: CountTokensRequest) -> dict[str, Any] | None:
    where, format = "output_config.format", request.output_config.format if request.output_config else None
    if request.output_format is not None:
        if format is not None:
            raise field_error("output_format", f"and {where} exclude each other; leave out output_format.")
        where, format = "output_format", request.output_format
    if format is None:
        return None
    if format.get("type") != "json_schema":
        raise field_error(f"{where}.type", "should be json_schema.")
    schema = {"name": "output", "schema": format.get("schema"), "strict": True}
    return {"type": "json_schema", "json_schema": schema}
