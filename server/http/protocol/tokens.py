"""POST /tokenize, POST /detokenize and GET /tokenizer_info, in the shapes of vLLM."""

from __future__ import annotations

from typing import Any

from server.http.protocol.chat import Messages, RenderingFields
from server.http.protocol.common import AnswerModel, Listed, RequestModel


class TokenizeRequest(RenderingFields):
    """A text as it is (`prompt`), or a conversation to be rendered with the pivot's template (`messages`)."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: Listed[Any] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeAnswer(AnswerModel):
    """The pivot's tokens; `token_strs` where asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(RequestModel):
    """Ids of the pivot."""

    model: str | None = None
    tokens: Listed[int]


class DetokenizeAnswer(AnswerModel):
    """Their text."""

    prompt: str


class TokenizerInfo(AnswerModel):
    """Facts with which a client renders and counts tokens as the pivot does."""

    tokenizer_class: str
    vocabulary_size: int
    model_max_length: int
    chat_template: str | dict[str, str] | list[Any] | None
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
