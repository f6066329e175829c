"""XML: reads a call as Qwen-Coder writes it, as it is generated.

The grammar gives each tag a line of its own, so that a field's text may hold any tag within a line. What is
written in another way is read loosely: there a tag counts wherever it is.
"""

from __future__ import annotations

import re
from typing import NamedTuple

LONGEST_NAME = 1000  # of a function or a field; what is longer is none
MOST_SPACE = 100  # between the marks that close a call

_TAG = re.compile(rf"<(function|parameter)=([^>\n]{{1,{LONGEST_NAME}}})>\n")
_END = re.compile(rf"</function>\s{{0,{MOST_SPACE}}}</tool_call>")
CLOSING_LINE = "\n</parameter>\n"


class XmlCall(NamedTuple):
    """The name and the fields of a call, and the index after it."""

    name: str
    fields: list[tuple[str, str]]
    end: int


class XmlScan:
    """The state of one call. Each character of it is looked at once, or twice, however often it is asked."""

    def __init__(self) -> None:
        self._name = ""
        self._fields: list[tuple[str, str]] = []
        self._key: str | None = None  # of the field whose text is being read
        self._at: int | None = None  # where that text, or the next tag, begins
        self._sought = 0  # up to where the end of the text, or of the call, was looked for
        self._loose = False

    def call(self, text: str, start: int, *, last: bool) -> XmlCall | None:
        """The call that begins with `<function=` at `start`, None while it is not whole.

        Where nothing follows (`last`), it may lack its closing mark.
        """
        if self._at is None:
            self._at = start
        if not self._loose and (found := self._by_lines(text, self._at, last=last)) is not None:
            return found
        return self._anywhere(text, start, last=last) if self._loose or last else None

    def _by_lines(self, text: str, at: int, *, last: bool) -> XmlCall | None:
        """The call, None while it is not whole; `_loose` is set where it has other lines than the grammar's."""
        while True:
            if self._key is not None:
                if (close := text.find(CLOSING_LINE, max(at, self._sought))) < 0:
                    self._at, self._sought = at, len(text) - len(CLOSING_LINE)
                    return None
                self._fields.append((self._key, text[at:close]))
                at, self._key = close + len(CLOSING_LINE), None
            elif (tag := _TAG.match(text, at)) is not None and (tag[1] == "parameter") == bool(self._name):
                at = tag.end()
                if self._name:
                    self._key = tag[2]
                else:
                    self._name = tag[2]
            elif self._name and (end := _END.match(text, at)) is not None:
                return XmlCall(self._name, self._fields, end.end())
            elif self._name and last and _is_closing(text, at):
                return XmlCall(self._name, self._fields, len(text))
            else:
                self._at = at
                if not _may_be_tag(text, at):
                    self._loose, self._sought = True, 0
                return None

    def _anywhere(self, text: str, start: int, *, last: bool) -> XmlCall | None:
        sought = max(start, self._sought if self._loose else 0)
        if (found := _END.search(text, sought)) is not None:
            close, end = found.span()
        else:
            # What was looked through is not looked through again, but for an end whose beginning it may hold.
            close, end = text.rfind("</function>", sought), len(text)
            begun = close >= 0 and _is_closing(text, close)
            if not begun or not last:
                self._sought = close if begun else len(text) - len("</function>")
                return None
        name, _, body = text[start + len("<function=") : close].partition(">")
        return XmlCall(name, _fields_anywhere(body), end)


def _is_closing(text: str, at: int) -> bool:
    """Return whether a text ends, from `at` on, as a call does, but for its mark or for the rest of that."""
    if not text.startswith("</function>", at):
        return False
    at += len("</function>")
    rest = text[at : at + MOST_SPACE + len("</tool_call>")]
    mark = rest.lstrip()
    return len(rest) - len(mark) <= MOST_SPACE and "</tool_call>".startswith(mark)


def _may_be_tag(text: str, at: int) -> bool:
    """Return whether a tag with its line, or a call's end, may stand at `at` once more of the text is there."""
    begun = text[at : at + LONGEST_NAME + len("<parameter=>") + 1]
    for tag in ("<function=", "<parameter="):
        if tag.startswith(begun[: len(tag)]):
            name = begun[len(tag) :].removesuffix(">")
            return len(name) <= LONGEST_NAME and not {">", "\n"} & {*name}
    return "</function>".startswith(begun) or _is_closing(text, at)


def _fields_anywhere(body: str) -> list[tuple[str, str]]:
    fields, at = [], 0
    while (at := body.find("<parameter=", at)) >= 0:
        at += len("<parameter=")
        end, line = body.find(">", at), body.find("\n", at)
        if end < 0:
            break
        if end == at or 0 <= line < end:  # no tag, and neither is any other that begins before
            at = end if line < 0 else min(end, line)
            continue
        close = body.find("</parameter>", end)
        if close < 0:
            break
        value = body[end + 1 : close]
        fields.append((body[at:end], value.removeprefix("\n").removesuffix("\n")))
        at = close + len("</parameter>")
    return fields
