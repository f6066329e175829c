"""Views of a model: what one adds to a conversation, and where that stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from alignment.text.boundaries import Located
from fusion.options import Place

Messages = list[dict[str, Any]]
GAP = "\n\n"  # between a context and the text that it stands before


@dataclass(frozen=True, slots=True)
class ModelView:
    """What a member is shown besides the request; nothing for a model as it is.

    Attributes:
        name: the member's name; empty for the model's own.
        adapter: name of the LoRA adapter that it runs with.
        system: text in front of the conversation's system message, or that message where there is none.
        context: a document to read with the prompt.
        template: arguments of the chat template, which stand above those of a request.
        negative: messages in the place of the conversation, or a text in the place of its system message; in a
            text completion a text in the place of the prompt.
        param: the field of the request that it comes from, which refusals name.
        of: the member of the ensemble that it is one of several views of, for one request.
    """

    name: str = ""
    adapter: str | None = None
    system: str | None = None
    context: str | None = None
    template: Mapping[str, Any] = field(default_factory=dict)
    negative: str | tuple[dict[str, Any], ...] | None = None
    param: str | None = None
    of: str | None = None

    @property
    def is_plain(self) -> bool:
        """Return whether the model is shown the request as it is."""
        return self.system is None and self.context is None and self.negative is None

    def chat(
        self, messages: Messages, place: Place, *, continued: bool = False
    ) -> tuple[Messages, list[tuple[int, int] | None]]:
        """The messages that the model is shown; where the last one is `continued`, they end with it.

        Returns also, for each of the given messages, the index of the one that it is shown in and the length of
        its text at the end of that one; None where it is not shown.
        """
        shown, kept = [dict(message) for message in messages], list(range(len(messages)))
        if isinstance(self.negative, tuple):
            shown, kept = [dict(message) for message in self.negative], [-1] * len(messages)
            if continued:
                kept[-1] = len(shown)
                shown.append(dict(messages[-1]))
        elif self.negative is not None:
            systems = [index for index, message in enumerate(messages) if message["role"] == "system"]
            if systems:
                shown[systems[0]]["content"] = self.negative
            else:
                shown.insert(0, {"role": "system", "content": self.negative})
            kept = [-1 if index in systems[:1] else index + (not systems) for index in kept]
        added = [(self.system, False), (self.context, place == "user")]
        for text, to_user in added:
            if text is not None:
                kept = _add(shown, kept, text, to_user=to_user)
        lengths = [len(str(message.get("content") or "").strip()) for message in messages]
        return shown, [
            (index, length) if index >= 0 else None for index, length in zip(kept, lengths, strict=True)
        ]

    def text(self, text: str) -> str:
        """The text that the model is shown in a text completion."""
        if self.negative is not None:
            text = self.negative if isinstance(self.negative, str) else _joined(self.negative)
        return GAP.join([part for part in (self.system, self.context) if part is not None] + [text])


def _joined(messages: Sequence[Mapping[str, Any]]) -> str:
    return GAP.join(str(message.get("content") or "") for message in messages)


def _add(shown: Messages, kept: list[int], text: str, *, to_user: bool) -> list[int]:
    """Put a text in front of the last user message or of the system message; returns where messages are now."""
    role = "user" if to_user and any(message["role"] == "user" for message in shown) else "system"
    found = [index for index, message in enumerate(shown) if message["role"] == role]
    if found:
        at = found[-1] if role == "user" else found[0]
        shown[at]["content"] = GAP.join([text, str(shown[at].get("content") or "")])
        return kept
    shown.insert(0, {"role": "system", "content": text})
    return [index + 1 if index >= 0 else index for index in kept]


def original_spans(located: Located, shown: Sequence[tuple[int, int] | None]) -> Located:
    """The places of the given messages' texts in a prompt that shows more: each stands at the end of a text."""
    spans: list[tuple[int, int] | None] = []
    for one in shown:
        span = located.texts[one[0]] if one is not None and one[0] < len(located.texts) else None
        spans.append(
            None if span is None or one is None or not one[1] else (max(span[1] - one[1], span[0]), span[1])
        )
    return replace(located, texts=tuple(spans))
