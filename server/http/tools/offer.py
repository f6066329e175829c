"""Offer: the tools of a chat request, as its members are shown them and as its answers are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from alignment.text.tokenizer import Tokenizer
from fusion.sequence.grammar import Grammar
from fusion.sequence.grammar_table import GrammarTable
from server.http.tools.calls import Tool, declared
from server.http.tools.formats import FORMATS, Format, named_tool
from server.http.tools.history import shown
from server.http.tools.template import ToolSupport, probe

if TYPE_CHECKING:
    from fusion.ensemble import Ensemble
    from server.http.protocol.chat import ChatRequest

GrammarFor = Callable[[GrammarTable], Grammar]
"""A grammar for the vocabulary of a pivot, in which other tokens may be special than in another's."""

Shown = dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Offer:
    """Tools that may be called; `choice` is `auto`, `required`, or an object that names one of them."""

    tools: list[Tool]
    choice: str | dict[str, Any]
    parallel: bool

    @classmethod
    def of(cls, body: ChatRequest) -> Offer:
        """The offer of a request; with `tool_choice: none` it has no tools.

        Raises:
            InvalidRequestError: a tool that is none, or a choice that cannot be followed.
        """
        tools, choice = declared(body.tools), body.tool_choice or "auto"
        named_tool(choice, tools)
        return cls([] if choice == "none" else tools, choice, body.parallel_tool_calls is not False)

    @property
    def demanded(self) -> bool:
        """Whether the answer must be a call."""
        return bool(self.tools) and self.choice != "auto"

    @property
    def relaxed(self) -> Offer | None:
        """The offer without schemas, for those that cannot be enforced; None where they must be."""
        if self.demanded or any(tool.strict for tool in self.tools):
            return None
        tools = [replace(tool, parameters={"type": "object"}) for tool in self.tools]
        return Offer(tools, self.choice, self.parallel)

    def grammar(self, format: Format, *, demanded: bool) -> GrammarFor | None:
        """The grammar of the calls, alone where `demanded`, else inside of text; None without tools."""
        if not self.tools:
            return None
        choice = "required" if demanded and self.choice == "auto" else self.choice

        def made(table: GrammarTable) -> Grammar:
            found = format.grammar(self.tools, table, choice=choice, parallel=self.parallel)
            assert found is not None, "there are tools"
            return found

        return made


def support_of(tokenizer: Tokenizer) -> ToolSupport:
    """What a tokenizer's chat template shows of tools."""
    template = getattr(tokenizer, "template", None)
    if template is None:
        return ToolSupport(FORMATS["json"], tools=False, calls=False, several=False)

    def render(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        text: str = template.render(messages, template_kwargs={"tools": tools} if tools else {})
        return text

    return probe(render)


def format_for(support: ToolSupport, setting: str) -> Format:
    """The format that calls are read in: the one that was set, else the template's."""
    return support.format if setting == "auto" else FORMATS[setting]


def conversations(
    ensemble: Ensemble,
    messages: list[dict[str, Any]],
    tools: list[Tool],
    supports: dict[str, ToolSupport],
    format: Format,
) -> Shown | None:
    """The messages and template arguments of each member; None where no tools are in play."""
    if not tools and not any(m["role"] == "tool" or m.get("tool_calls") for m in messages):
        return None
    out: Shown = {}
    for name in ensemble.models:
        own, listed = shown(messages, tools, supports[name], format)
        out[name] = (own, {"tools": listed} if listed else {})
    return out
