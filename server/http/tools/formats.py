"""Call formats: how families of models write a tool call, and the grammar that makes them write one.

| format  | a call |
|---------|--------|
| hermes  | `<tool_call>{"name": .., "arguments": ..}</tool_call>` (Hermes, Qwen, Granite) |
| coder   | `<tool_call><function=..><parameter=..>..` (Qwen-Coder, Qwen 3.5) |
| llama   | `{"name": .., "parameters": ..}`, bare (Llama 3) |
| mistral | `[TOOL_CALLS][{"name": .., "arguments": ..}]` (to Nemo) |
| args    | `[TOOL_CALLS]name[ARGS]{..}` (Mistral Small 3.2, Devstral) |
| json    | `{"name": .., "arguments": ..}`, bare: the fallback |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignment.errors import field_error
from fusion.sequence.grammar import Grammar, json_rule, literal
from fusion.sequence.grammar_table import GrammarTable
from fusion.sequence.structural import Tag, structural
from server.http.errors import shorten
from server.http.tools import fields
from server.http.tools.calls import Tool, new_id, short_id
from server.settings.fields import ToolFormat


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write calls. `opener` marks them inside text; "" where the answer must begin with them."""

    name: ToolFormat
    opener: str
    key: str = "arguments"

    @property
    def marks(self) -> tuple[str, ...]:
        """What it writes that may be control tokens of a tokenizer, which stand for no text."""
        match self.name:
            case "args":
                return (self.opener, "[CALL_ID]", "[ARGS]")
            case "hermes" | "coder":
                return (self.opener, "</tool_call>")
            case _:
                return (self.opener,) if self.opener else ()

    def new_id(self) -> str:
        """An id that the family's templates accept."""
        return short_id() if self.name in ("mistral", "args") else new_id()

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """A call as the model would have written it."""
        if self.name == "coder":
            fields = "".join(
                f"<parameter={key}>\n{_value(value)}\n</parameter>\n" for key, value in arguments.items()
            )
            return f"<tool_call>\n<function={name}>\n{fields}</function>\n</tool_call>"
        if self.name == "args":
            return f"[TOOL_CALLS]{name}[ARGS]{json.dumps(arguments, ensure_ascii=False)}"
        call = json.dumps({"name": name, self.key: arguments}, ensure_ascii=False)
        match self.name:
            case "hermes":
                return f"<tool_call>\n{call}\n</tool_call>"
            case "mistral":
                return f"[TOOL_CALLS][{call}]"
            case _:
                return call

    def instructions(self, tools: Sequence[Tool]) -> str:
        """Return the system message about the tools for a model whose template knows no tools."""
        listed = "\n".join(json.dumps(tool.as_dict()["function"], ensure_ascii=False) for tool in tools)
        example = self.write("function-name", {"argument-name": "value"})
        return (
            "You may call functions. These exist, each with the JSON schema of its parameters:\n"
            f"{listed}\n\nTo call one, write exactly this, with its name and arguments:\n{example}"
        )

    def grammar(
        self,
        tools: Sequence[Tool],
        table: GrammarTable,
        *,
        choice: str | Mapping[str, Any] = "auto",
        parallel: bool = True,
        param: str = "tools",
    ) -> Grammar | None:
        """Return the grammar for `tool_choice`: auto allows calls in text, required and a named tool demand one.

        `param` is the request's field, for errors.

        Returns:
            None where nothing is to be enforced (no tools, or `none`).

        Raises:
            InvalidRequestError: a choice without tools, or of a tool that is not declared.
        """
        named = named_tool(choice, tools)
        if not tools or choice == "none":
            return None
        offered = [named] if named else list(tools)
        separator = {"hermes": "\n", "coder": "\n", "llama": "; ", "json": "\n"}.get(self.name, "")
        return structural(
            self._tags(offered, parallel, param),
            table,
            required=named is not None or choice == "required",
            # Mistral's list holds several calls in one tag, and a named tool is called once.
            parallel=parallel and named is None and self.name != "mistral",
            separator=separator,
            param=param,
        )

    def _tags(self, tools: Sequence[Tool], parallel: bool, param: str) -> list[Tag]:
        match self.name:
            case "coder":
                return [
                    Tag(
                        self.opener,
                        f"\n<function={tool.name}>\n",
                        None,
                        "</function>\n</tool_call>",
                        fields.rules(tool, param),
                    )
                    for tool in tools
                ]
            case "mistral":
                calls = [
                    f"{literal(self._begin(tool))} {_arguments(tool, param)} {literal('}')}" for tool in tools
                ]
                more = ' (", " call)*' if parallel else ""
                rules = f'start: "[" call{more} "]"\ncall: ' + "\n    | ".join(calls)
                return [Tag(self.opener, "", None, "", rules)]
            case "args":
                return [
                    Tag(self.opener, f"{tool.name}[ARGS]", tool.schema, "", lenient=not tool.strict)
                    for tool in tools
                ]
            case "hermes":
                end = "}\n</tool_call>"
                return [
                    Tag(self.opener, f"\n{self._begin(tool)}", tool.schema, end, lenient=not tool.strict)
                    for tool in tools
                ]
            case _:
                return [Tag("", self._begin(tool), tool.schema, "}", lenient=not tool.strict) for tool in tools]

    def _begin(self, tool: Tool) -> str:
        return f'{{"name": {json.dumps(tool.name)}, "{self.key}": '


FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Format("hermes", "<tool_call>"),
        Format("coder", "<tool_call>"),
        Format("llama", "", key="parameters"),
        Format("mistral", "[TOOL_CALLS]"),
        Format("args", "[TOOL_CALLS]"),
        Format("json", ""),
    )
}


def named_tool(choice: str | Mapping[str, Any], tools: Sequence[Tool]) -> Tool | None:
    """The tool that `tool_choice` names, None for auto, none and required.

    Raises:
        InvalidRequestError: a choice that cannot be followed.
    """
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise field_error("tool_choice", _CHOICES)
        if choice == "required" and not tools:
            raise field_error("tool_choice", "is required, but tools is missing.")
        return None
    found = _named(choice, tools)
    if found is None:
        named = isinstance(choice.get("function"), Mapping)
        raise field_error("tool_choice", "names a function that is not among tools." if named else _CHOICES)
    return found


_CHOICES = 'should be "auto", "none" or "required", name a function, or list allowed_tools.'


def allowed_tools(choice: Mapping[str, Any], tools: Sequence[Tool]) -> tuple[str, list[Tool]]:
    """What a `tool_choice` of the type `allowed_tools` comes to: `auto` or `required`, of which tools.

    Raises:
        InvalidRequestError: a choice that cannot be followed.
    """
    where = "tool_choice.allowed_tools"
    allowed = choice.get("allowed_tools")
    allowed = allowed if isinstance(allowed, Mapping) else {}
    if (mode := allowed.get("mode")) not in ("auto", "required"):
        raise field_error(f"{where}.mode", f'should be "auto" or "required", not {shorten(mode)}.')
    if not isinstance(listed := allowed.get("tools"), list) or not listed:
        raise field_error(f"{where}.tools", "should list functions that are among tools.")
    found = [_named(one, tools) for one in listed]
    if None in found:
        raise field_error(f"{where}.tools[{found.index(None)}]", "names no function that is among tools.")
    return mode, [tool for tool in tools if tool in found]


def _named(choice: Any, tools: Sequence[Tool]) -> Tool | None:
    """The tool of a function's name, as choices give it."""
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    return next((tool for tool in tools if tool.name == name), None)


def _arguments(tool: Tool, param: str) -> str:
    return json_rule(tool.schema, param=param, lenient=not tool.strict)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
