"""Answers of /v1/responses: a chat's answer as a response object, and as the events of its stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from alignment.errors import RequestError
from server.http.errors import status_of
from server.http.protocol.responses import CUSTOM_INPUT, ResponsesRequest, callable_tools


class ResponseStream:
    """Turns the deltas of a chat answer into the events of one response, and into the response itself.

    Each method gives the events that are due, in order; `response` is the object as it then stands.
    """

    idle: Mapping[str, Any] | None = None  # no event may come before `response.created`

    def __init__(self, request: ResponsesRequest, model: str) -> None:
        self.response: dict[str, Any] = {
            "id": _id("resp"),
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
                (_FUNCTION if tool["type"] == "function" else {}) | tool
                for tool in request.tools or ()
                if tool.get("type") in _SHOWN
            ],
            "top_p": request.top_p,
            "truncation": request.truncation or "disabled",
            "usage": None,
            "user": request.user,
        }
        self._tools = {each.tool["function"]["name"]: each for each in callable_tools(request.tools)}
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

    def finish(
        self, finish_reason: str, usage: Mapping[str, Any], stop_reason: str | int | None = None
    ) -> list[dict[str, Any]]:
        """The last events: `completed`, or `incomplete` where the limit ended it. Stop strings are not shown."""
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
        """The last event of an answer that failed on the way; the first ones come before it where nothing did."""
        out = self._end("incomplete") if self._number else self.start()
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
        prefix = {"reasoning": "rs", "message": "msg", "function_call": "fc", "custom_tool_call": "ctc"}[kind]
        item: dict[str, Any] = {"id": _id(prefix), "type": kind, "status": "in_progress"}
        match kind:
            case "reasoning":
                item |= {"summary": [], "content": []}
            case "message":
                item |= {"role": "assistant", "content": []}
            case "function_call":
                item |= {"arguments": ""} | fields
            case _:
                item |= {"input": ""} | fields
        self._open, self._text = item, ""
        out.append(self._event("output_item.added", output_index=len(self.response["output"]), item=dict(item)))
        if kind in ("reasoning", "message"):
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
            called = self._tools[function["name"]]
            named = {"call_id": call["id"], "name": called.name}
            if called.namespace is not None:
                named["namespace"] = called.namespace
            out += self._begin("custom_tool_call" if called.custom else "function_call", **named)
        if text := function.get("arguments"):
            kind = self._open["type"] if self._open else None
            if kind == "custom_tool_call":
                given = json.loads(text).get(CUSTOM_INPUT)
                text = given if isinstance(given, str) else text  # a model that was not bound says it otherwise
            self._text += text
            name = "custom_tool_call_input" if kind == "custom_tool_call" else "function_call_arguments"
            out.append(self._event(f"{name}.delta", **self._at(), delta=text))
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
        elif kind == "custom_tool_call":
            item["input"] = self._text
            out.append(self._event("custom_tool_call_input.done", **at, input=self._text))
        else:
            part = _part(kind, self._text)
            name = "reasoning_text" if kind == "reasoning" else "output_text"
            logprobs: dict[str, Any] = {} if kind == "reasoning" else {"logprobs": []}
            out.append(self._event(f"{name}.done", **at, content_index=0, text=self._text, **logprobs))
            out.append(self._event("content_part.done", **at, content_index=0, part=part))
            item["content"] = [part]
        # A call is only ever sent whole.
        item["status"] = status if kind in ("reasoning", "message") else "completed"
        out.append(self._event("output_item.done", output_index=at["output_index"], item=item))
        self.response["output"].append(item)
        self._open = None
        return out


_SHOWN = ("function", "custom", "namespace")
"""The types of tools that a response repeats: those that the model was told of."""

_FUNCTION: dict[str, Any] = {"description": None, "parameters": {}, "strict": False}
"""What a function has where it was not given."""


def as_response(request: ResponsesRequest, answer: Mapping[str, Any]) -> dict[str, Any]:
    """The response object of a whole chat completion (as a plain dict)."""
    stream = ResponseStream(request, answer["model"])
    choice = answer["choices"][0]
    stream.push(choice["message"])
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
