"""Reading: the text of an answer as it arrives, taken apart into thoughts, content and tool calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusion.core import Token
from server.http.reasoning import ReasoningSplitter, ReasoningTags
from server.http.tools.calls import ToolCall
from server.http.tools.parser import ToolParser

Fields = dict[str, Any]


class Reading:
    """The state of one answer.

    Args:
        parser: reads calls out of the content; None where no tool may be called.
        tags: of thoughts; None leaves them in the content.
        opened: whether the prompt ends inside of thoughts.
        midway: whether some of them stand in the prompt, so that white space may come next.
        hidden: whether thoughts are left out of the answer.
        marks: control tokens, which stand for no text, whose spelling opens a call or marks thoughts.
    """

    def __init__(
        self,
        *,
        parser: ToolParser | None,
        tags: ReasoningTags | None,
        opened: bool,
        midway: bool,
        hidden: bool,
        marks: dict[int, str],
    ) -> None:
        self._parser = parser
        self._splitter = ReasoningSplitter(tags, opened=opened, midway=midway) if tags else None
        self._hidden = hidden
        self._marks = marks
        self.content = ""
        self.reasoning = ""
        self.calls: list[ToolCall] = []
        self.thoughts = 0
        """The tokens between the tags of thoughts."""

    def push(self, text: str, tokens: Sequence[Token], *, last: bool) -> list[Fields]:
        """The deltas that a round brings; `last` where nothing follows."""
        spelled = "".join(self._marks.get(token.chosen.id, "") for token in tokens)
        if spelled and tokens[-1].chosen.id in self._marks:
            text += spelled
        else:
            text = spelled + text
        out: list[Fields] = []
        if self._splitter is None:
            self._read(text, out)
        else:
            inside = self._splitter.inside
            pieces = self._splitter.push(text)
            if inside and self._splitter.inside:
                self.thoughts += len(tokens)
            pieces += self._splitter.finish() if last else []
            for piece in pieces:
                if piece.kind == "content":
                    self._read(piece.text, out)
                elif not self._hidden:
                    self.reasoning += piece.text
                    out.append({"reasoning": piece.text, "reasoning_content": piece.text})
        if last and self._parser is not None:
            self._take(self._parser.finish(), out)
        return out

    def _read(self, text: str, out: list[Fields]) -> None:
        if text:
            self._take([text] if self._parser is None else self._parser.push(text), out)

    def _take(self, pieces: Sequence[str | ToolCall], out: list[Fields]) -> None:
        for piece in pieces:
            if isinstance(piece, ToolCall):
                self.calls.append(piece)
                out.extend({"tool_calls": delta} for delta in piece.deltas())
            else:
                self.content += piece
                out.append({"content": piece})
