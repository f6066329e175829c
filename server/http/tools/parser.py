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


@dataclass(frozen=True, slots=True)
class _Read:
    """A stretch of text that was read: the calls in it (none: it is text), and its length."""

    calls: list[tuple[str, str]]
    length: int


class ToolParser:
    """The state of one answer. Where a special token opens a call, its spelling must be in the text."""

    def __init__(self, format: Format, tools: Sequence[Tool], *, new_id: Callable[[], str] | None = None) -> None:
        self._format = format
        self._tools = {tool.name: tool for tool in tools}
        self._new_id = new_id or format.new_id
        self._held = ""
        self._inside = False
        self._bare = not format.opener  # whether a bare call may still begin here
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
        text, self._held = self._held, ""
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
            self._say(self._held[:start].rstrip(), out)
            self._held = self._held[start:]
            self._inside, self._scan, self._xml_scan = True, _JsonScan(), XmlScan()
            return True
        kept = len(self._held) - begun(self._held, opener)
        kept = len(self._held[:kept].rstrip())  # white space before a call is no content
        self._say(self._held[:kept], out)
        self._held = self._held[kept:]
        return False

    def _read_bare(self, out: list[str | ToolCall]) -> bool:
        if not self._bare:
            self._say(self._held, out)
            self._held = ""
            return False
        text = self._held.lstrip(" \n\t\r;" if self.calls else None)
        if text.startswith("{") or text.startswith(_PYTHON_TAG):
            self._held, self._inside, self._scan = text, True, _JsonScan()
            return True
        if not text or _PYTHON_TAG.startswith(text):
            return False
        self._bare = False
        return True

    def _read_call(self, out: list[str | ToolCall], *, last: bool = False) -> bool:
        read = self._call(last=last)
        if read is None:
            return False
        self._inside = False
        if read.calls:
            for name, arguments in read.calls:
                call = ToolCall(len(self.calls), self._new_id(), name, arguments)
                self.calls.append(call)
                out.append(call)
            self._said = False
        else:
            self._bare = False
            self._said = True
            out.append(self._held[: read.length])
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
