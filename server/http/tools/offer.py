"""Offer: the tools of a chat request, as its members are shown them and as its answers are read."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from alignment.errors import InvalidRequestError
from alignment.text.tokenizer import Tokenizer
from fusion.sequence.grammar import Grammar
from fusion.sequence.grammar_table import GrammarTable
from fusion.sequence.lenience import enforceable, refused_among
from server.http.errors import shorten_text
from server.http.tools.calls import Tool, declared
from server.http.tools.formats import FORMATS, Format, allowed_tools, named_tool
from server.http.tools.history import shown
from server.http.tools.template import ToolSupport, probe

if TYPE_CHECKING:
    from fusion.ensemble import Ensemble
    from server.http.protocol.chat import ChatRequest

log = logging.getLogger(__name__)

SCHEMA_WORK = 1_000_000  # characters of schemas that are compiled to find those that cannot be enforced

GrammarFor = Callable[[GrammarTable], Grammar]
"""A grammar for the vocabulary of a pivot, in which other tokens may be special than in another's."""

Shown = dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools of a request.

    Attributes:
        tools: as the members are shown them, all of them whatever may be called: that keeps the prompt the same.
        callable: those that an answer may call, with their schemas as they are enforced.
        choice: `auto`, `required`, or an object that names one of them.
        parallel: whether an answer may hold several calls.
    """

    tools: list[Tool]
    callable: list[Tool]
    choice: str | dict[str, Any]
    parallel: bool

    @classmethod
    def of(cls, body: ChatRequest) -> Offer:
        """The offer of a request; with `tool_choice: none` it has no tools.

        Raises:
            InvalidRequestError: a tool that is none, or a choice that cannot be followed.
        """
        tools, choice = declared(body.tools), body.tool_choice or "auto"
        if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
            choice, callable = allowed_tools(choice, tools)
        elif (named := named_tool(choice, tools)) is not None:
            callable = [named]
        else:
            callable = tools = [] if choice == "none" else tools
        return cls(tools, _enforced(callable), choice, body.parallel_tool_calls is not False)

    @property
    def demanded(self) -> bool:
        """Whether the answer must be a call."""
        return bool(self.callable) and self.choice != "auto"

    def relaxed(self, format: Format, tables: Sequence[GrammarTable]) -> Offer:
        """The offer without the schemas that cannot be enforced, which are looked for by halves.

        Raises:
            InvalidRequestError: a schema of a tool that is strict.
        """
        refused = refused_among(
            self.callable,
            lambda tools: self._refusal(format, tools, tables),
            cost=lambda tool: len(json.dumps(tool.parameters)),
            work=SCHEMA_WORK,
        )
        failing = set()
        for tool, error in refused:
            if tool.strict and error is not None:
                raise error
            failing.add(tool.name)
        names = shorten_text(", ".join(sorted(failing)))
        log.info("the schemas of %d tools cannot be enforced and are left out: %s", len(failing), names)
        return self.without_schemas(failing)

    def _refusal(
        self, format: Format, tools: Sequence[Tool], tables: Sequence[GrammarTable]
    ) -> InvalidRequestError | None:
        """Why calls of these tools cannot be enforced; None where they can."""
        places = [tool.name for tool in self.tools]
        param = "tools" if len(tools) > 1 else f"tools[{places.index(tools[0].name)}].function.parameters"
        for table in tables:
            try:
                grammar = format.grammar(tools, table, choice="required", param=param)
                assert grammar is not None, "there are tools"
                table.check(grammar)
            except InvalidRequestError as error:
                return error
        return None

    def without_schemas(self, names: Collection[str] | None = None) -> Offer:
        """The offer without the schemas of the tools with these names, by default of all, but for strict ones."""
        tools = [
            replace(tool, parameters={"type": "object"})
            if not tool.strict and (names is None or tool.name in names)
            else tool
            for tool in self.callable
        ]
        return replace(self, callable=tools)

    def grammar(self, format: Format, *, demanded: bool) -> GrammarFor | None:
        """The grammar of the calls, alone where `demanded`, else inside of text; None without tools."""
        if not self.callable:
            return None
        choice = "required" if demanded and self.choice == "auto" else self.choice

        def made(table: GrammarTable) -> Grammar:
            found = format.grammar(self.callable, table, choice=choice, parallel=self.parallel)
            assert found is not None, "there are tools"
            return found

        return made


def _enforced(tools: Sequence[Tool]) -> list[Tool]:
    """The tools; those that are not strict without what no grammar can enforce."""
    lenient = [tool for tool in tools if not tool.strict]
    schemas = enforceable([tool.parameters for tool in lenient])
    without = {tool.name: schema for tool, schema in zip(lenient, schemas, strict=True)}
    return [replace(tool, parameters=without.get(tool.name, tool.parameters)) for tool in tools]


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
