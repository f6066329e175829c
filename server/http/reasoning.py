"""Reasoning splitter: separates what a model thinks from what it says, as the text is generated.

Thoughts stand between two tags at the beginning of an answer. A template may write the opening tag itself, as part
of the prompt. White space beside the tags belongs to neither. The result does not depend on how the text is cut
into pieces.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Piece(NamedTuple):
    """A piece of an answer."""

    kind: Literal["reasoning", "content"]
    text: str


class ReasoningTags(NamedTuple):
    """The tags that thoughts stand between."""

    open: str
    close: str

    def opened_by(self, prompt: str) -> bool:
        """Return whether a rendered prompt ends inside thoughts."""
        return prompt.rstrip().endswith(self.open)

    def begun_in(self, text: str) -> str | None:
        """The thoughts that a text to go on from ends inside of; None where it does not."""
        _, tag, thoughts = text.rpartition(self.open)
        return thoughts if tag and self.close not in thoughts else None


def begun(text: str, mark: str) -> int:
    """How many characters at the end of a text could be the beginning of a mark, all of which is not there yet."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-n:])), 0)


class ReasoningSplitter:
    """The state of one answer."""

    def __init__(self, tags: ReasoningTags, *, opened: bool, midway: bool) -> None:
        self._tags = tags
        self._state: Literal["before", "inside", "after"] = "inside" if opened else "before"
        self._held = ""
        self._trim = opened and not midway  # whether white space at the beginning of what comes next is left out

    @property
    def inside(self) -> bool:
        """Return whether the text so far ends between the tags."""
        return self._state == "inside"

    def push(self, text: str) -> list[Piece]:
        """The pieces that `text` makes certain."""
        self._held += text
        out: list[Piece] = []
        if self._state == "before":
            self._begin()
        if self._state == "inside":
            self._think(out)
        if self._state == "after":
            self._emit("content", self._held, out)
            self._held = ""
        return out

    def finish(self) -> list[Piece]:
        """Return the text held back at the end. Thoughts that were not closed stay thoughts."""
        out: list[Piece] = []
        if self._state == "inside":
            self._emit("reasoning", self._held.rstrip(), out)
        elif self._held:
            self._emit("content", self._held, out)
        self._held = ""
        return out

    def _begin(self) -> None:
        text, opening = self._held.lstrip(), self._tags.open
        if text.startswith(opening):
            self._held, self._state, self._trim = text[len(opening) :], "inside", True
        elif not opening.startswith(text):
            self._state = "after"

    def _think(self, out: list[Piece]) -> None:
        close = self._tags.close
        if (end := self._held.find(close)) >= 0:
            self._emit("reasoning", self._held[:end].rstrip(), out)
            self._held, self._state, self._trim = self._held[end + len(close) :], "after", True
            return
        kept = len(self._held) - begun(self._held, close)
        kept = len(self._held[:kept].rstrip())
        self._emit("reasoning", self._held[:kept], out)
        self._held = self._held[kept:]

    def _emit(self, kind: Literal["reasoning", "content"], text: str, out: list[Piece]) -> None:
        if self._trim:
            text = text.lstrip()
        if text:
            self._trim = False
            out.append(Piece(kind, text))
