"""Log-probabilities in the two shapes of the API."""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fusion.core import Token, TokenLogProb
from server.http.protocol.chat_answer import ChatLogprob, ChatLogprobs, ChatTopLogprob
from server.http.protocol.common import PromptLogprob, PromptLogprobs
from server.http.protocol.completions import CompletionLogprobs

if TYPE_CHECKING:
    from alignment.text.boundaries import Located
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


def prompt_logprobs(tokens: Sequence[Token], alternatives: int, tokenizer: Tokenizer) -> PromptLogprobs:
    """A prompt's own tokens and the `alternatives` likeliest in the place of each, in vLLM's shape."""

    def entry(one: TokenLogProb, rank: int | None) -> PromptLogprob:
        text = one.surface.decode(errors="backslashreplace") or _special(one, tokenizer)
        return PromptLogprob(logprob=_floored(one), rank=rank, decoded_token=text)

    out: PromptLogprobs = []
    for token in tokens:
        if not _predicted(token):
            out.append(None)
            continue
        ranked = {one.id: entry(one, rank) for rank, one in enumerate(token.top[:alternatives], 1)}
        listed = next((rank for rank, one in enumerate(token.top, 1) if one.id == token.chosen.id), None)
        out.append({token.chosen.id: entry(token.chosen, listed)} | ranked)
    return out


class CompletionText:
    """The text that one choice of a text completion returns, and where its tokens stand in it.

    Args:
        tokenizer: the pivot's.
        echo: the prompt as it is returned, "" where it is not.
        places: where the prompt's tokens stand in `echo`. None where that is not known: then they are taken to
            stand one after the other, as what they spell.
    """

    def __init__(self, tokenizer: Tokenizer, echo: str = "", places: Located | None = None) -> None:
        self._tokenizer = tokenizer
        self._echo = echo
        self._places = places if places is not None and None not in places.texts else None
        self._begun = 0
        self._echoed = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def logprobs(self, prompt: Sequence[Token], tokens: Sequence[Token]) -> CompletionLogprobs:
        """The next tokens, those of the prompt first, in the shape of text completions.

        The alternatives of a token always include the token itself: evaluation harnesses look it up there. Of
        several with one name the best is kept. A token that begins inside a character has that character's
        offset.
        """
        names, offsets = [], []
        for token in prompt:
            name, offset = self._place_in_prompt(token.chosen)
            names.append(name)
            offsets.append(offset)
        if tokens and self._places is not None and self._echoed:
            self._begun = len(self._echo)
        for token in tokens:
            names.append(self._name(token.chosen))
            offsets.append(self._advance(token.chosen.surface))
        both = [*prompt, *tokens]
        return CompletionLogprobs(
            tokens=names,
            token_logprobs=[_floored(token.chosen) if _predicted(token) else None for token in both],
            top_logprobs=[
                self._alternatives(token, name) if _predicted(token) else None
                for token, name in zip(both, names, strict=True)
            ],
            text_offset=offsets,
        )

    def _place_in_prompt(self, entry: TokenLogProb) -> tuple[str, int]:
        """The name and the offset of the prompt's next token. Its name is what it stands for in the prompt."""
        if self._places is None or self._echoed >= len(self._places.starts):
            return self._name(entry), self._advance(entry.surface)
        start, end = int(self._places.starts[self._echoed]), int(self._places.ends[self._echoed])
        self._echoed += 1
        name = self._name(entry)
        return (self._echo[start:end] if entry.surface and not name.startswith("bytes:") else name), start

    def _advance(self, surface: bytes) -> int:
        """The offset of a token with this surface, which follows those before."""
        begun = self._begun
        pending, _ = self._decoder.getstate()
        if pending and surface and _breaks_off(pending, surface):
            begun += len(pending.decode(errors="replace"))
        self._begun += len(self._decoder.decode(surface))
        return begun

    def _alternatives(self, token: Token, name: str) -> dict[str, float]:
        best: dict[str, float] = {}
        for entry in token.top:
            best.setdefault(self._name(entry), _floored(entry))  # best first
        best[name] = max(best.get(name, FLOOR), _floored(token.chosen))
        return best

    def _name(self, entry: TokenLogProb) -> str:
        try:
            return entry.surface.decode() or _special(entry, self._tokenizer)
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in entry.surface)


def _breaks_off(pending: bytes, surface: bytes) -> bool:
    """Return whether the character that was begun with `pending` does not go on in a token with this surface."""
    try:
        codecs.utf_8_decode(pending + surface[:1], "strict", False)
    except UnicodeDecodeError:
        return True
    return False


def _predicted(token: Token) -> bool:
    """Return whether anything came before a token."""
    return not math.isnan(token.chosen.logprob)


def _floored(entry: TokenLogProb) -> float:
    return max(entry.logprob, FLOOR)


def _special(entry: TokenLogProb, tokenizer: Tokenizer) -> str:
    """The name of a token that stands for no text, such as <|im_end|>; the padding of a vocabulary has none."""
    name = tokenizer.hf.convert_ids_to_tokens(entry.id)
    return f"<id {entry.id}>" if name is None else str(name)
