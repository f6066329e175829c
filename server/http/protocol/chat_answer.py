"""POST /v1/chat/completions: the answer, whole and as a stream."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from server.http.protocol.common import AnswerModel, Envelope, PromptLogprobs, Usage, is_none
from server.http.protocol.fusion import FusionReport, RoundsReport


class ChatTopLogprob(AnswerModel):
    """An alternative to a token. `bytes` is null for special tokens, which stand for no text."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(ChatTopLogprob):
    """A token of the answer with its best alternatives."""

    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(AnswerModel):
    """The tokens of a choice, or of a chunk of it."""

    content: list[ChatLogprob]


class AnswerMessage(AnswerModel):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning: str | None = Field(default=None, exclude_if=is_none)
    reasoning_content: str | None = Field(default=None, exclude_if=is_none)
    tool_calls: list[dict[str, Any]] | None = Field(default=None, exclude_if=is_none)


class ChatChoice(AnswerModel):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None
    stop_reason: str | int | None
    token_ids: list[int] | None = Field(default=None, exclude_if=is_none)
    fusion: FusionReport | None = Field(default=None, exclude_if=is_none)


class ChatCompletion(Envelope):
    """The whole answer."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = Field(default=None, exclude_if=is_none)
    prompt_token_ids: list[int] | None = Field(default=None, exclude_if=is_none)
    prompt_text: str | None = Field(default=None, exclude_if=is_none)


class Delta(AnswerModel):
    """The part of its message that a chunk adds."""

    role: Literal["assistant"] | None = Field(default=None, exclude_if=is_none)
    content: str | None = Field(default=None, exclude_if=is_none)
    reasoning: str | None = Field(default=None, exclude_if=is_none)
    reasoning_content: str | None = Field(default=None, exclude_if=is_none)
    tool_calls: list[dict[str, Any]] | None = Field(default=None, exclude_if=is_none)


class ChatChunkChoice(AnswerModel):
    """The part of one of `n` answers that a chunk adds."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None
    stop_reason: str | int | None = Field(default=None, exclude_if=is_none)
    token_ids: list[int] | None = Field(default=None, exclude_if=is_none)
    fusion: FusionReport | RoundsReport | None = Field(default=None, exclude_if=is_none)


class ChatChunk(Envelope):
    """One event of a stream."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    prompt_token_ids: list[int] | None = Field(default=None, exclude_if=is_none)
    prompt_text: str | None = Field(default=None, exclude_if=is_none)
