"""Translation: answers of chat completions as the events and objects of other APIs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol

from pydantic import BaseModel, RootModel, ValidationError

from alignment.errors import RequestError, UnsupportedError, field_error
from fusion.core import Delta
from server.http.errors import invalid_field
from server.http.generation import Choice
from server.http.protocol.chat import ChatRequest
from server.http.routes.chat import ChatShape


class Object(RootModel[dict[str, Any]]):
    """A JSON object: an answer or an event."""


class EventStreamOf(Protocol):
    """Turns chat deltas into another API's events."""

    idle: Mapping[str, Any] | None
    """An event that says nothing, where the API has one that may come first."""

    def start(self) -> list[dict[str, Any]]:
        """The first events."""

    def push(self, delta: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The events of a delta."""

    def finish(
        self, finish_reason: str, usage: Mapping[str, Any], stop_reason: str | int | None
    ) -> list[dict[str, Any]]:
        """The last events."""

    def fail(self, error: RequestError) -> list[dict[str, Any]]:
        """The events of an answer that failed on the way."""


class TranslatedShape:
    """Answers of one choice as another API has them: `events` in a stream, `whole` made of a chat completion."""

    done = ""

    def __init__(
        self, chat: ChatShape, events: EventStreamOf, whole: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> None:
        self.chat = chat
        self.events = events
        self._whole = whole

    def frame(self, chunk: BaseModel) -> str:
        """An event, named by its type."""
        assert isinstance(chunk, Object)
        return f"event: {chunk.root['type']}\ndata: {json.dumps(chunk.root, ensure_ascii=False)}\n\n"

    def failure(self, error: RequestError) -> str:
        """The events of an answer that failed on the way."""
        return "".join(self.frame(Object(event)) for event in self.events.fail(error))

    def idle(self) -> Object | None:
        """An event that says nothing."""
        return None if self.events.idle is None else Object(dict(self.events.idle))

    def opening(self, choices: list[Choice]) -> Iterator[Object]:
        """The first events."""
        yield from map(Object, self.events.start())

    def chunks(self, choice: Choice, update: Delta) -> Iterator[Object]:
        """The events of a round; with the last of them usage."""
        for chunk in self.chat.chunks(choice, update):
            for part in chunk.choices:
                yield from map(Object, self.events.push(part.delta.model_dump()))
                if part.finish_reason is not None:
                    usage = self.chat.generation.usage.model_dump()
                    yield from map(Object, self.events.finish(part.finish_reason, usage, part.stop_reason))

    def closing(self) -> None:
        """Nothing: usage is in the last event."""

    def whole(self, choices: list[Choice]) -> Object:
        """The answer in one piece."""
        return Object(self._whole(self.chat.whole(choices).model_dump()))


Names = Sequence[tuple[str, str]]
"""Patterns that names of a chat's fields begin with, and what these are called elsewhere; the first one holds."""


@contextmanager
def in_words_of(names: Names, tools: Iterator[str] | None = None) -> Iterator[None]:
    """Let errors that are about a field of a chat name the field of the API that was asked.

    `tools` are the places of the chat's tools in the request, where these are not the same.
    """
    try:
        yield
    except RequestError as error:
        if (given := error.param) is None:
            raise
        param = given
        for pattern, name in names:
            if found := re.match(pattern, param):
                param = found.expand(name) + param[found.end() :]
                break
        if tools is not None and (found := re.match(r"tools\[(\d+)\]", param)):
            param = next(islice(tools, int(found[1]), None), found[0]) + param[found.end() :]
        error.message, error.param = error.message.replace(given, param), param
        raise


def valid_chat(fields: dict[str, Any]) -> ChatRequest:
    """The chat request of these fields.

    Raises:
        InvalidRequestError: one of them is wrong.
    """
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        problems = [problem | {"loc": ("body", *problem["loc"])} for problem in error.errors()]
        raise invalid_field(problems) from error


_OF_CHATS = ("logprobs", "top_logprobs", "prompt_logprobs", "return_prompt_text", "return_token_ids")
"""Fields that ask for what only answers of chats have."""


def chat_request(fields: dict[str, Any]) -> ChatRequest:
    """The chat request of these fields, for an API that has one answer of text alone.

    Raises:
        InvalidRequestError: one of them is wrong, or asks for what has no place there.
    """
    body = valid_chat(fields)
    asked = [name for name in _OF_CHATS if getattr(body, name)]
    if body.fusion is not None and body.fusion.report:
        asked.append("fusion.report")
    if asked:
        raise UnsupportedError(
            f"{asked[0]} has no place in the answers of this API; use /v1/chat/completions for it.", param=asked[0]
        )
    if (body.n or 1) > 1:
        raise field_error("n", "should be 1: this API has one answer.")
    return body
