"""POST /v1/responses: the request as a chat request, and a chat's answer as response objects and events.

Nothing is stored. Tools other than functions are left out, and those of a namespace are taken one by one.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from alignment.errors import InvalidRequestError, RequestError
from server.http.errors import shorten, status_of
from server.http.protocol.common import RequestModel, expected

Input = Annotated[str | list[dict[str, Any]], expected("a string or a list of items")]
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
    tools: list[dict[str, Any]] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningFields | None = None
    truncation: str | None = None
    metadata: dict[str, Any] | None = None
    include: list[str] | None = None
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
        "tools": _tools(request.tools) or None,
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
            raise InvalidRequestError(
                f"{name} refers to something stored, but this server stores nothing; send the whole conversation "
                "as input.",
                param=name,
                code="not_implemented",
            )
    if request.background:
        raise InvalidRequestError(
            "background answers are stored, but this server stores nothing; leave it out.",
            param="background",
            code="not_implemented",
        )
    if request.truncation not in (None, "disabled"):
        raise InvalidRequestError(
            'truncation should be "disabled": this server never leaves out parts of a conversation.',
            param="truncation",
            code="not_implemented",
        )


def _messages(given: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not given:
        raise InvalidRequestError("input holds no items.", param="input")
    out: list[dict[str, Any]] = []
    called: set[str] = set()
    reasoning = ""
    for index, item in enumerate(given):
        where = f"input[{index}]"
        match item.get("type", "message"):
            case "message":
                role = item.get("role")
                if role not in ("user", "assistant", "system", "developer"):
                    raise InvalidRequestError(
                        f"{where}.role should be user, assistant, system or developer, not {shorten(role)}.",
                        param=f"{where}.role",
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
                    raise InvalidRequestError(
                        f"{where}.call_id refers to no function_call before it.", param=f"{where}.call_id"
                    )
                out.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
            case "reasoning":
                reasoning = _text(item.get("content") or [], f"{where}.content")
            case kind:
                raise InvalidRequestError(
                    f"{where} is of type {shorten(kind)}, but only messages, function calls, their outputs and "
                    "reasoning are understood.",
                    param=f"{where}.type",
                    code="not_implemented",
                )
    return out


def _arguments(item: Mapping[str, Any], where: str) -> str:
    """The arguments of a call, which are JSON text of an object."""
    for name in ("name", "call_id"):
        if not isinstance(item.get(name), str) or not item[name]:
            raise InvalidRequestError(f"{where}.{name} is missing.", param=f"{where}.{name}")
    arguments = item.get("arguments") or "{}"
    try:
        read = json.loads(arguments) if isinstance(arguments, str) else None
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        raise InvalidRequestError(
            f"{where}.arguments should be the JSON text of an object.", param=f"{where}.arguments"
        )
    return str(arguments)


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequestError(f"{where} should be a string or a list of parts.", param=where)
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("input_text", "output_text", "text", "reasoning_text", "refusal"):
            raise InvalidRequestError(
                f"{where}[{index}] is of type {shorten(kind)}, but only text is understood.",
                param=f"{where}[{index}].type",
                code="not_implemented",
            )
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise InvalidRequestError(f"{where}[{index}].text should be a string.", param=f"{where}[{index}].text")
        texts.append(text)
    return "\n".join(texts)


def _tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """The functions among the tools, in the shape of chat completions."""
    out = []
    for tool in tools or ():
        if tool.get("type") == "namespace" and isinstance(inner := tool.get("tools"), list):
            out += _tools([each for each in inner if isinstance(each, dict)])
        elif tool.get("type") == "function":
            names = ("name", "description", "parameters", "strict")
            function = {name: tool[name] for name in names if tool.get(name) is not None}
            out.append({"type": "function", "function": function})
    return out


def _choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") != "function":
        raise InvalidRequestError(
            "tool_choice should name a function: other tools are not served.",
            param="tool_choice",
            code="not_implemented",
        )
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
            raise InvalidRequestError(
                f"text.format.type should be text, json_object or json_schema, not {shorten(kind)}.",
                param="text.format.type",
            )


class ResponseStream:
    """Turns the deltas of a chat answer into the events of one response, and into the response itself.

    Each method gives the events that are due, in order; `response` is the object as it then stands.
    """

    def __init__(self, request: ResponsesRequest, model: str, *, id: str | None = None) -> None:
        functions = [tool["function"] for tool in _tools(request.tools)]
        self.response: dict[str, Any] = {
            "id": id or _id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": model,
            "output": [],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": request.reasoning.effort if request.reasoning else None, "summary": None},
            "store": False,
            "temperature": request.temperature,
            "text": {"format": (request.text.format if request.text else None) or {"type": "text"}},
            "tool_choice": request.tool_choice or "auto",
            "tools": [
                {"type": "function", "description": None, "parameters": {}, "strict": False} | function
                for function in functions
            ],
            "top_p": request.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": request.user,
        }
        self._number = 0
        self._open: dict[str, Any] | None = None
        self._text = ""

    def start(self) -> list[dict[str, Any]]:
        """`created` and `in_progress`."""
        return [self._whole("created"), self._whole("in_progress")]

    def push(self, delta: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The events of a chat delta: `reasoning`, `content` and `tool_calls`, each where present."""
        out: list[dict[str, Any]] = []
        if text := delta.get("reasoning"):
            out += self._add_text("reasoning", text)
        if text := delta.get("content"):
            out += self._add_text("message", text)
        for call in delta.get("tool_calls") or ():
            out += self._add_call(call)
        return out

    def finish(self, finish_reason: str, usage: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The last events: `completed`, or `incomplete` where the limit ended the answer."""
        cut = finish_reason == "length"
        out = [] if self.response["output"] or self._open else self._begin("message")
        out += self._end("incomplete" if cut else "completed")
        self.response |= {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": response_usage(usage),
        }
        return [*out, self._whole("incomplete" if cut else "completed")]

    def fail(self, error: RequestError) -> list[dict[str, Any]]:
        """The last event of an answer that failed on the way."""
        out = self._end("incomplete")
        code = "rate_limit_exceeded" if status_of(error) == 429 else "server_error"
        self.response |= {"status": "failed", "error": {"code": code, "message": error.message}}
        return [*out, self._whole("failed")]

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        event = {"type": f"response.{kind}", "sequence_number": self._number} | fields
        self._number += 1
        return event

    def _whole(self, kind: str) -> dict[str, Any]:
        return self._event(kind, response=self.response | {"output": list(self.response["output"])})

    def _at(self) -> dict[str, Any]:
        assert self._open is not None
        return {"output_index": len(self.response["output"]), "item_id": self._open["id"]}

    def _begin(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        out = self._end("completed")
        prefix = {"reasoning": "rs", "message": "msg", "function_call": "fc"}[kind]
        item: dict[str, Any] = {"id": _id(prefix), "type": kind, "status": "in_progress"}
        match kind:
            case "reasoning":
                item |= {"summary": [], "content": []}
            case "message":
                item |= {"role": "assistant", "content": []}
            case _:
                item |= {"arguments": ""} | fields
        self._open, self._text = item, ""
        out.append(self._event("output_item.added", output_index=len(self.response["output"]), item=dict(item)))
        if kind != "function_call":
            part = _part(kind, "")
            out.append(self._event("content_part.added", **self._at(), content_index=0, part=part))
        return out

    def _add_text(self, kind: str, text: str) -> list[dict[str, Any]]:
        out = [] if self._open and self._open["type"] == kind else self._begin(kind)
        self._text += text
        name = "reasoning_text" if kind == "reasoning" else "output_text"
        logprobs: dict[str, Any] = {} if kind == "reasoning" else {"logprobs": []}
        out.append(self._event(f"{name}.delta", **self._at(), content_index=0, delta=text, **logprobs))
        return out

    def _add_call(self, call: Mapping[str, Any]) -> list[dict[str, Any]]:
        function = call["function"]
        out = []
        if "id" in call:
            out += self._begin("function_call", call_id=call["id"], name=function["name"])
        if text := function.get("arguments"):
            self._text += text
            out.append(self._event("function_call_arguments.delta", **self._at(), delta=text))
        return out

    def _end(self, status: str) -> list[dict[str, Any]]:
        """The events that close the open item."""
        if (item := self._open) is None:
            return []
        kind, at = item["type"], self._at()
        out = []
        if kind == "function_call":
            item["arguments"] = self._text or "{}"
            done = {"arguments": item["arguments"], "name": item["name"]}
            out.append(self._event("function_call_arguments.done", **at, **done))
        else:
            part = _part(kind, self._text)
            name = "reasoning_text" if kind == "reasoning" else "output_text"
            logprobs: dict[str, Any] = {} if kind == "reasoning" else {"logprobs": []}
            out.append(self._event(f"{name}.done", **at, content_index=0, text=self._text, **logprobs))
            out.append(self._event("content_part.done", **at, content_index=0, part=part))
            item["content"] = [part]
        item["status"] = status
        out.append(self._event("output_item.done", output_index=at["output_index"], item=item))
        self.response["output"].append(item)
        self._open = None
        return out


def as_response(request: ResponsesRequest, answer: Mapping[str, Any]) -> dict[str, Any]:
    """The response object of a whole chat completion (as a plain dict)."""
    stream = ResponseStream(request, answer["model"])
    choice = answer["choices"][0]
    message = choice["message"]
    calls = [call | {"index": index} for index, call in enumerate(message.get("tool_calls") or ())]
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    stream.push({"reasoning": reasoning, "content": message.get("content"), "tool_calls": calls})
    stream.finish(choice["finish_reason"], answer["usage"])
    return stream.response


def response_usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    """A chat's usage as a response's."""
    prompt, completion = usage.get("prompt_tokens_details") or {}, usage.get("completion_tokens_details") or {}
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": prompt.get("cached_tokens") or 0, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": completion.get("reasoning_tokens") or 0},
        "total_tokens": usage["total_tokens"],
    }


def _part(kind: str, text: str) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"
