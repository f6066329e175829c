"""Template probe: finds the call format that a chat template writes, and which parts of tool use it can render.

Copies of a template differ between releases of one model, so its name says nothing: a conversation with markers is
rendered once at load, and what became of the markers decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server.http.tools.calls import Tool
from server.http.tools.formats import FORMATS, Format

Render = Callable[[list[dict[str, Any]], list[dict[str, Any]] | None], str]
"""Renders messages (and tools) to the text of a prompt; raises what it likes."""

_TOOL = Tool(
    "zq_probe_f",
    "zq-described",
    {"type": "object", "properties": {"zq_place": {"type": "string"}}, "required": ["zq_place"]},
)
_RESULT = "zq-result"
_SYSTEM = "zq-system"
_BARE = re.compile(r"\"parameters\"\s*:\s*\{\s*\"zq_place\"\s*:\s*\"zq-1\"")


@dataclass(frozen=True, slots=True)
class ToolSupport:
    """A chat template's support of tools.

    Attributes:
        format: in which it writes calls; `json` where it shows none.
        tools: it lists the tools for the model, and keeps the system message.
        calls: calls and results in the history reach the prompt, each once, arguments as they are.
        several: also two calls of one message.
    """

    format: Format
    tools: bool
    calls: bool
    several: bool


def probe(render: Render) -> ToolSupport:
    """Probe the template behind `render` for its support of tools."""
    question = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": "zq-question"}]
    listed = _rendered(render, question)
    plain = [{"role": "user", "content": "zq-question"}]
    one = _rendered(render, plain + _history(1))
    two = _rendered(render, plain + _history(2))
    calls = _shown(one, 1)
    return ToolSupport(
        format=FORMATS[_format_of(one) if calls else "json"],
        tools=all(mark in listed for mark in (_TOOL.name, "zq-described", "zq_place", _SYSTEM)),
        calls=calls,
        several=calls and _shown(two, 2),
    )


def _history(count: int) -> list[dict[str, Any]]:
    ids = [f"zqprobe0{number}" for number in range(1, count + 1)]
    calls = [
        {
            "id": id,
            "type": "function",
            "function": {"name": _TOOL.name, "arguments": {"zq_place": f"zq-{number}"}},
        }
        for number, id in enumerate(ids, 1)
    ]
    results = [
        {"role": "tool", "tool_call_id": id, "name": _TOOL.name, "content": f"{_RESULT}-{number}"}
        for number, id in enumerate(ids, 1)
    ]
    return [{"role": "assistant", "content": "", "tool_calls": calls}, *results]


def _rendered(render: Render, messages: list[dict[str, Any]]) -> str:
    try:
        return render(messages, [_TOOL.as_dict()])
    except Exception:  # a template is a program: one that raises here cannot show this
        return ""


def _shown(text: str, count: int) -> bool:
    """Return whether the prompt holds each argument and result once, and arguments' JSON is not quoted again."""
    marks = [f"zq-{number}" for number in range(1, count + 1)]
    results = [f"{_RESULT}-{number}" for number in range(1, count + 1)]
    return all(text.count(mark) == 1 for mark in marks + results) and not re.search(r'\\+"zq_place', text)


def _format_of(text: str) -> str:
    """The format that a rendered call is written in."""
    before = text[: text.find("zq-1")]
    if "[TOOL_CALLS]" in before:
        return "args" if "[ARGS]" in before[before.rfind("[TOOL_CALLS]") :] else "mistral"
    if "<tool_call>" in before:
        return "coder" if "<function=" in before[before.rfind("<tool_call>") :] else "hermes"
    return "llama" if _BARE.search(text) else "json"
