"""Answers of /v1/messages: a chat's answer as a message object, and as the events of its stream; errors."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

from alignment.errors import PromptTooLongError, RequestError
from server.http.errors import status_of
from server.http.protocol.messages import THREAD_UNSUPPORTED

_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageStream:
    """Turns the deltas of a chat answer into the events of one message, and into the message itself.

    Each event goes out with its type as the `event:` line as well.
    """

    idle: Mapping[str, Any] | None = {"type": "ping"}

    def __init__(self, model: str, *, input_tokens: int = 0) -> None:
        self.message: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": input_tokens, "output_tokens": 0},
        }
        self._open: dict[str, Any] | None = None
        self._arguments = ""

    def start(self) -> list[dict[str, Any]]:
        """`message_start`, with an empty content and usage."""
        message = self.message | {"content": [], "usage": dict(self.message["usage"])}
        return [{"type": "message_start", "message": message}]

    def push(self, delta: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The events of a chat delta: `reasoning`, `content` and `tool_calls`, each where present."""
        out: list[dict[str, Any]] = []
        if text := delta.get("reasoning"):
            out += self._add("thinking", "thinking", text)
        if text := delta.get("content"):
            out += self._add("text", "text", text)
        for call in delta.get("tool_calls") or ():
            function = call["function"]
            if "id" in call:
                block = {"type": "tool_use", "id": call["id"], "name": function["name"], "input": {}}
                out += self._begin(block)
            if text := function.get("arguments"):
                self._arguments += text
                out.append(self._delta({"type": "input_json_delta", "partial_json": text}))
        return out

    def finish(
        self, finish_reason: str, usage: Mapping[str, Any], stop_reason: str | int | None = None
    ) -> list[dict[str, Any]]:
        """The last events. A `stop_reason` that is a text is the stop sequence that ended the answer."""
        # Clients read content[0], also of an answer that is empty.
        out = [] if self.message["content"] or self._open else self._begin({"type": "text", "text": ""})
        out += self._end()
        sequence = stop_reason if isinstance(stop_reason, str) and finish_reason == "stop" else None
        reason = "stop_sequence" if sequence is not None else _STOPS.get(finish_reason, "end_turn")
        # All that was read is both counts of the input together.
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        thoughts = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
        counts = {
            "input_tokens": usage["prompt_tokens"] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"thinking_tokens": thoughts},
        }
        self.message |= {"stop_reason": reason, "stop_sequence": sequence, "usage": counts}
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        return [
            *out,
            {"type": "message_delta", "delta": delta, "usage": counts},
            {"type": "message_stop"},
        ]

    def fail(self, error: RequestError) -> list[dict[str, Any]]:
        """The event of an answer that failed on the way."""
        return [error_body(error)]

    def _index(self) -> int:
        return len(self.message["content"])

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._index(), "delta": delta}

    def _begin(self, block: dict[str, Any]) -> list[dict[str, Any]]:
        out = self._end()
        self._open, self._arguments = block, ""
        return [*out, {"type": "content_block_start", "index": self._index(), "content_block": dict(block)}]

    def _add(self, kind: str, name: str, text: str) -> list[dict[str, Any]]:
        empty = {"type": kind, name: ""} | ({"signature": ""} if kind == "thinking" else {})
        out = [] if self._open and self._open["type"] == kind else self._begin(empty)
        assert self._open is not None
        self._open[name] += text
        out.append(self._delta({"type": f"{kind}_delta", name: text}))
        return out

    def _end(self) -> list[dict[str, Any]]:
        if self._open is None:
            return []
        if self._open["type"] == "tool_use":
            self._open["input"] = json.loads(self._arguments or "{}")
        out = []
        if self._open["type"] == "thinking":
            # Clients send no thoughts back that are not signed. Nothing checks what they send.
            self._open["signature"] = secrets.token_hex(16)
            out.append(self._delta({"type": "signature_delta", "signature": self._open["signature"]}))
        out.append({"type": "content_block_stop", "index": self._index()})
        self.message["content"].append(self._open)
        self._open = None
        return out


def as_message(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The message of a whole chat completion (as a plain dict)."""
    stream = MessageStream(answer["model"])
    choice = answer["choices"][0]
    stream.push(choice["message"])
    stream.finish(choice["finish_reason"], answer["usage"], choice.get("stop_reason"))
    return stream.message


def error_body(error: RequestError, request_id: str | None = None) -> dict[str, Any]:
    """An error in Anthropic's shape."""
    message = error.message
    if isinstance(error, PromptTooLongError):
        # Claude Code and gateways look for these words, and then shorten the conversation by what is too much.
        message = f"prompt is too long: {error.tokens} tokens > {error.limit} maximum. {message}"
    detail: dict[str, Any] = {"type": _ERRORS.get(status_of(error), "api_error"), "message": message}
    if error.code == THREAD_UNSUPPORTED:
        detail["details"] = {"error_code": THREAD_UNSUPPORTED, "unsupported": ["thread"]}
    return {"type": "error", "error": detail, "request_id": request_id}
