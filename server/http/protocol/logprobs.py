"""Log-probabilities in the two shapes of the API."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fusion.core import Token, TokenLogProb
from server.http.protocol.chat_answer import ChatLogprob, ChatLogprobs, ChatTopLogprob
from server.http.protocol.completions import CompletionLogprobs

if TYPE_CHECKING:
    from alignment.text.tokenizer import Tokenizer

# JSON has no minus infinity; vLLM's floor.
FLOOR = -9999.0


def chat_logprobs(tokens: Sequence[Token], tokenizer: Tokenizer) -> ChatLogprobs:
    """As in chat completions: bytes next to each token, since a token may end inside a character."""

    def top(entry: TokenLogProb) -> ChatTopLogprob:
        token = entry.surface.decode(errors="backslashreplace") or _special(entry, tokenizer)
        return ChatTopLogprob(token=token, logprob=_floored(entry), bytes=list(entry.surface) or None)

    content = [
        ChatLogprob(**top(token.chosen).model_dump(), top_logprobs=[top(entry) for entry in token.top])
        for token in tokens
    ]
    return ChatLogprobs(content=content)


def completion_logprobs(tokens: Sequence[Token], tokenizer: Tokenizer, start: int) -> CompletionLogprobs:
    """As in text completions.

    The alternatives of a token always include the token itself: evaluation harnesses look it up there. A token
    that starts inside a character has that character's offset.

    Args:
        tokens: in order.
        tokenizer: the pivot's.
        start: how many characters were begun by the tokens before these (`characters`).
    """

    def name(entry: TokenLogProb) -> str:
        try:
            return entry.surface.decode() or _special(entry, tokenizer)
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in entry.surface)

    offsets = []
    for token in tokens:
        inside = token.chosen.surface[:1] and _continues(token.chosen.surface[0])
        offsets.append(max(start - 1, 0) if inside else start)
        start += characters([token])
    return CompletionLogprobs(
        tokens=[name(token.chosen) for token in tokens],
        token_logprobs=[_floored(token.chosen) if _predicted(token) else None for token in tokens],
        top_logprobs=[
            {name(e): _floored(e) for e in (*token.top, token.chosen)} if _predicted(token) else None
            for token in tokens
        ],
        text_offset=offsets,
    )


def characters(tokens: Sequence[Token]) -> int:
    """The number of characters that these tokens begin."""
    return sum(not _continues(byte) for token in tokens for byte in token.chosen.surface)


def _continues(byte: int) -> bool:
    """Whether a byte of UTF-8 goes on with a character that an earlier one began."""
    return byte & 0xC0 == 0x80


def _predicted(token: Token) -> bool:
    """Whether anything came before a token."""
    return not math.isnan(token.chosen.logprob)


def _floored(entry: TokenLogProb) -> float:
    return max(entry.logprob, FLOOR)


def _special(entry: TokenLogProb, tokenizer: Tokenizer) -> str:
    """The name of a token that stands for no text, such as <|im_end|>."""
    return str(tokenizer.hf.convert_ids_to_tokens(entry.id))
