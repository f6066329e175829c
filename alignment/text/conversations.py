"""Conversations: rendered ones in tokens, where control tokens come only from the template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import tokenizers

from alignment.errors import InvalidRequestError
from alignment.text import chat
from alignment.text.boundaries import Span
from alignment.text.control import Encoded, Spelled, place_of


@dataclass(frozen=True, slots=True)
class Conversations:
    """A tokenizer's reading of rendered conversations.

    Attributes:
        name: what the checkpoint is called in messages to people.
        read: tokenises a text, control tokens among it.
        read_plain: tokenises a text as plain, as it stands after a control token; the second argument says whether
            that is an added token, None where there is none.
        control: ids of the control tokens.
        added: ids of the added tokens.
        spelling: the control tokens by id.
        unknown: the id that stands for characters that the vocabulary lacks.
        shades: what tells the template's text from that of messages.
    """

    name: str
    read: Callable[[str], tokenizers.Encoding]
    read_plain: Callable[[str, bool | None], Encoded]
    control: Set[int]
    added: Set[int]
    spelling: Mapping[int, str]
    unknown: int | None
    shades: chat.Shades

    def pieces(
        self, rendered: chat.Rendered, whole: tokenizers.Encoding, messages: list[dict[str, Any]]
    ) -> list[tuple[int, Encoded]]:
        """A rendered conversation in tokens, piece by piece, each with the character it begins at.

        `whole` is what `read` makes of it. Control tokens are read only from text that the template wrote. Where
        messages spell some, the text between the genuine ones is read as plain text.
        """
        if self.control.isdisjoint(whole.ids):
            return [(0, whole)]
        text = rendered.text
        genuine, quoted = self._genuine(rendered, whole, text)
        quotes = bool(quoted)
        while quoted:  # without them, others that overlap may be read
            text = _blanked(text, quoted, rendered.blank)
            genuine, quoted = self._genuine(rendered, self.read(text), text)
        if not rendered.is_sure:
            self._require_harmless(rendered, [id for id, _ in genuine], messages)
        if not quotes:
            return [(0, whole)]
        pieces: list[tuple[int, Encoded]] = []
        done, after_added = 0, None
        for id, (start, end) in genuine:
            pieces.append((done, self.read_plain(rendered.text[done:start], after_added)))
            pieces.append((start, Spelled([id], [(0, end - start)])))
            done, after_added = end, id in self.added
        return [*pieces, (done, self.read_plain(rendered.text[done:], after_added))]

    def _genuine(
        self, rendered: chat.Rendered, encoding: tokenizers.Encoding, text: str
    ) -> tuple[list[tuple[int, Span]], list[Span]]:
        """The control tokens that were read in `text`: those the template wrote, and those messages speak of."""
        genuine: list[tuple[int, Span]] = []
        quoted: list[Span] = []
        ids = encoding.ids
        if not self.control.isdisjoint(ids):
            for index, id in enumerate(ids):
                if id not in self.control:
                    continue
                start, end = place_of(encoding, index)
                if end == start:
                    continue
                if id == self.unknown and self.spelling[id] not in text[start:end]:
                    continue  # a character that the vocabulary lacks
                if rendered.is_quoted(start, end):
                    quoted.append((start, end))
                else:
                    genuine.append((id, (start, end)))
        return genuine, quoted

    def _require_harmless(self, rendered: chat.Rendered, found: list[int], messages: list[dict[str, Any]]) -> None:
        """Raise InvalidRequestError where messages may have become control tokens and it is unknown which ones."""
        known = rendered.shaded is not None or not self.shades.could_spell("".join(chat.strings(messages)))
        if known and (without := rendered.crossed_out) is not None:
            plain = replace(rendered, text=without, shaded=None)
            expected, _ = self._genuine(plain, self.read(without), without)
            if found == [id for id, _ in expected]:
                return
        raise InvalidRequestError(
            f"The messages hold what could spell control tokens of {self.name}, and its template mixes them "
            "with its own text: leave those characters out.",
            param="messages",
        )


def _blanked(text: str, spans: list[Span], blank: str) -> str:
    """The text with a blank in the place of every character of the spans, which ascend."""
    pieces, done = [], 0
    for start, end in spans:
        pieces += [text[done:start], blank * (end - max(start, done))]
        done = max(done, end)
    return "".join(pieces) + text[done:]
