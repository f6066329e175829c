"""Parser: reads tool calls out of an answer as it is generated.

A call is held back until it is whole, so that one which the token limit cuts off is returned as text, never as a
call. The result does not depend on how the text is cut into pieces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from server.http.reasoning import begun
from server.http.tools import fields
from server.http.tools.calls import Tool, ToolCall, arguments_text
from server.http.tools.formats import Format
from server.http.tools.xml import XmlScan

_STRUCTURE = re.compile(r'["\\{}\[\]]')
_ARGS = re.compile(r"\s*([\w.-]{1,128})(?:\[CALL_ID\]\w+)?\[ARGS\]\s*")
_PYTHON_TAG = "<|python_tag|>"
_LINE = re.compile(r"\n[ \t]*\{")
# How a call that nothing marks begins on a later line, before the name of its tool.
_HEADS = (("{", '"name"', ":", '"'), ("{", '"type"', ":", '"function"', ",", '"name"', ":", '"'))
_LONGEST_HEAD = 300  # that with the name


@dataclass(frozen=True, slots=True)
class _Read:
    """A stretch of text that was read: the calls in it (none: it is text), and its length."""

    calls: list[tuple[str, str]]
    length: int


class ToolParser:
    """The state of one answer. Where a special token opens a call, its spelling must be in the text.

    Where nothing marks a call, one may begin the answer, follow another, or begin a later line, if the name of its
    tool comes first there.

    Args:
        format: in which calls are written.
        tools: that may be called; what looks like a call of another one is text.
        parallel: whether a call that nothing marks may follow another.
        new_id: makes the ids of calls.
    """

    def __init__(
        self,
        format: Format,
        tools: Sequence[Tool],
        *,
        parallel: bool = True,
        new_id: Callable[[], str] | None = None,
    ) -> None:
        self._format = format
        self._parallel = parallel
        self._tools = {tool.name: tool for tool in tools}
        self._new_id = new_id or format.new_id
        self._held = ""
        self._space = ""  # what stands before the call that is being read, in case that it is none
        self._inside = False
        self._bare = not format.opener  # whether any JSON may be a call here
        self._line = 0  # from where on the beginning of a line is looked for
        self._said = False
        self._scan = _JsonScan()
        self._xml_scan = XmlScan()
        self.calls: list[ToolCall] = []

    def push(self, text: str) -> list[str | ToolCall]:
        """Add `text` to the answer; return the new pieces of content, and the calls that are now whole."""
        self._held += text
        out: list[str | ToolCall] = []
        while self._step(out):
            pass
        return _joined(out)

    def finish(self) -> list[str | ToolCall]:
        """Return what was held back at the end: a call that lacks no more than its closing mark, and text.

        A call that is not whole is content.
        """
        out: list[str | ToolCall] = []
        while self._inside and self._read_call(out, last=True):
            while self._step(out):
                pass
        text, self._held = self._space + self._held, ""
        if text and not (self.calls and not text.strip()):
            out.append(text)
        return _joined(out)

    def _step(self, out: list[str | ToolCall]) -> bool:
        """Move on by one stretch of text; False where more must come first."""
        if not self._held:
            return False
        if self._inside:
            return self._read_call(out)
        return self._read_bare(out) if not self._format.opener else self._read_text(out)

    def _read_text(self, out: list[str | ToolCall]) -> bool:
        opener = self._format.opener
        if (start := self._held.find(opener)) >= 0:
            return self._enter(start, out)
        self._say_before(len(self._held) - begun(self._held, opener), out)
        return False

    def _read_bare(self, out: list[str | ToolCall]) -> bool:
        if not self._bare:
            return self._read_line(out)
        text = self._held.lstrip(" \n\t\r;" if self.calls else None)
        if text.startswith("{") or text.startswith(_PYTHON_TAG):
            if self.calls:
                self._held = text
            return self._enter(len(self._held) - len(text), out)
        if not text or _PYTHON_TAG.startswith(text):
            return False
        self._bare, self._line = False, 0
        return True

    def _read_line(self, out: list[str | ToolCall]) -> bool:
        """Look for a call at the beginning of a line, as far as the text is there."""
        while (self._parallel or not self.calls) and (found := _LINE.search(self._held, self._line)) is not None:
            start = found.end() - 1
            names = self._names_tool(self._held[start : start + _LONGEST_HEAD])
            if names:
                return self._enter(start, out)
            if names is None and len(self._held) - start < _LONGEST_HEAD:
                self._say_before(found.start(), out)
                self._line = 0
                return False
            self._line = start
        self._say_before(len(self._held), out)
        self._line = max(self._held.rfind("\n"), 0)
        return False

    def _names_tool(self, text: str) -> bool | None:
        """Return whether a JSON object begins with the name of a tool; None where more of it would tell."""
        known: bool | None = False
        for marks in _HEADS:
            left = text
            for mark in marks:
                left = left.lstrip()
                if not left.startswith(mark):
                    known = None if mark.startswith(left) else known
                    break
                left = left.removeprefix(mark)
            else:
                name, quote, _ = left.partition('"')
                if quote:
                    return name in self._tools
                known = None if any(tool.startswith(name) for tool in self._tools) else known
        return known

    def _enter(self, start: int, out: list[str | ToolCall]) -> bool:
        """Go on with what may be a call, at `start`."""
        self._say_before(start, out)
        start = len(self._held) - len(self._held.lstrip())
        follows = self.calls and not self._said
        self._space, self._held = "" if follows else self._held[:start], self._held[start:]
        self._inside, self._scan, self._xml_scan = True, _JsonScan(), XmlScan()
        return True

    def _say_before(self, end: int, out: list[str | ToolCall]) -> None:
        """Say what stands before `end`, but for white space at its end: before a call that is no content."""
        kept = len(self._held[:end].rstrip())
        self._say(self._held[:kept], out)
        self._held = self._held[kept:]

    def _read_call(self, out: list[str | ToolCall], *, last: bool = False) -> bool:
        read = self._call(last=last)
        if read is None:
            return False
        self._inside, self._line = False, 0
        space, self._space = self._space, ""
        if read.calls:
            for name, arguments in read.calls:
                call = ToolCall(len(self.calls), self._new_id(), name, arguments)
                self.calls.append(call)
                out.append(call)
            self._said = False
            self._bare = not self._format.opener and self._parallel
        else:
            self._bare = False
            self._said = True
            out.append(space + self._held[: read.length])
        self._held = self._held[read.length :]
        return True

    def _say(self, text: str, out: list[str | ToolCall]) -> None:
        if self.calls and not self._said:
            text = text.lstrip()
        if text:
            self._said = True
            out.append(text)

    def _call(self, *, last: bool) -> _Read | None:
        """The call at the beginning of the held text; None while it is not whole.

        Where nothing follows (`last`), it may lack its closing mark.
        """
        text, opener = self._held, self._format.opener or (_PYTHON_TAG if self._held[0] == "<" else "")
        start = _skip(text, len(opener))
        if start == len(text):
            return None
        if opener == "<tool_call>":
            if "<function=".startswith(text[start : start + 10]):
                return self._xml(start, last=last)
            return self._json_call(start, close="</tool_call>", last=last)
        if opener == "[TOOL_CALLS]" and text[start] != "[":
            return self._named_call(start)
        return self._json_call(start)

    def _xml(self, start: int, *, last: bool) -> _Read | None:
        if (found := self._xml_scan.call(self._held, start, last=last)) is None:
            return None
        if (tool := self._tools.get(found.name.strip())) is None:
            return _Read([], found.end)
        arguments = arguments_text(fields.read(tool, found.fields))
        return _Read([] if arguments is None else [(tool.name, arguments)], found.end)

    def _named_call(self, start: int) -> _Read | None:
        head = _ARGS.match(self._held, start)
        if head is None:
            name_end = self._held.find("[ARGS]", start)
            if name_end >= 0 or len(self._held) - start > 300:  # longer than any name and id
                return _Read([], len(self._format.opener))
            return None
        if head.end() == len(self._held):
            return None
        end = self._scan.end(self._held, head.end())
        if end is None:
            return None
        arguments = arguments_text(_loaded(self._held[head.end() : end]))
        good = head[1] in self._tools and arguments is not None
        return _Read([(head[1], arguments)] if good and arguments else [], end)

    def _json_call(self, start: int, close: str = "", *, last: bool = False) -> _Read | None:
        end = self._scan.end(self._held, start)
        if end is None:
            return None
        value = _loaded(self._held[start:end])
        if close:
            after = _skip(self._held, end)
            rest = self._held[after : after + len(close)]
            if close.startswith(rest):
                if rest != close and not last:
                    return None
                end = after + len(rest)
        found = [self._named(item) for item in (value if isinstance(value, list) else [value])]
        calls = [call for call in found if call is not None]
        return _Read(calls if calls and len(calls) == len(found) else [], end)

    def _named(self, value: Any) -> tuple[str, str] | None:
        if (
            not isinstance(value, dict)
            or not isinstance(name := value.get("name"), str)
            or name not in self._tools
        ):
            return None
        arguments = arguments_text(value.get("arguments", value.get("parameters")))
        return None if arguments is None else (name, arguments)


class _JsonScan:
    """Finds the end of a JSON object or list, looking at each character once however often it is asked."""

    def __init__(self) -> None:
        self._at: int | None = None
        self._depth = 0
        self._quoted = False

    def end(self, text: str, start: int) -> int | None:
        """The index after the value that begins at `start`, None while it is not whole.

        Anything but an object or list ends at once.
        """
        if text[start] not in "{[":
            return start
        at = start if self._at is None else self._at
        while (found := _STRUCTURE.search(text, at)) is not None:
            at = found.end()
            match found[0]:
                case "\\":
                    if at == len(text):
                        self._at = found.start()
                        return None
                    at += 1
                case '"':
                    self._quoted = not self._quoted
                case "{" | "[" if not self._quoted:
                    self._depth += 1
                case "}" | "]" if not self._quoted:
                    self._depth -= 1
                    if self._depth == 0:
                        self._at = None  # asked again, for what follows the value, it finds the same end
                        return at
        self._at = max(at, len(text))
        return None


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return 0  # no call


def _joined(pieces: list[str | ToolCall]) -> list[str | ToolCall]:
    """Neighbouring texts as one."""
    out: list[str | ToolCall] = []
    for piece in pieces:
        if isinstance(piece, str) and out and isinstance(out[-1], str):
            out[-1] += piece
        else:
            out.append(piece)
    return out
