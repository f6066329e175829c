"""Structural grammars: text with marked parts, such as tool calls; thoughts before an answer; alternatives."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import llguidance

from fusion.sequence.grammar import Grammar, json_rule, literal
from fusion.sequence.grammar_table import GrammarTable


@dataclass(frozen=True, slots=True)
class Tag:
    """A marked part of an answer, such as a tool call.

    Attributes:
        trigger: the text that opens it; where it spells a special token, that token; "" for a part that begins
            with `{` at the beginning of the answer.
        begin: the text that follows the trigger at once, special tokens in it by their spelling.
        schema: of the JSON value that follows; None for a `grammar`.
        end: the text that closes it, likewise.
        grammar: the Lark rules for the middle, where it is no JSON value; they hold a rule `start`.
        lenient: keywords of the schema that cannot be enforced are left out, instead of refused.
    """

    trigger: str
    begin: str
    schema: Mapping[str, Any] | None
    end: str
    grammar: str | None = None
    lenient: bool = False


def structural(
    tags: Sequence[Tag],
    table: GrammarTable,
    *,
    required: bool = False,
    parallel: bool = True,
    separator: str = "",
    param: str = "tools",
) -> Grammar:
    """Text in which a trigger opens its tag, which must then be completed.

    Args:
        tags: that may occur; those of one trigger are distinguished by what follows it.
        table: says which triggers are special tokens.
        required: nothing but tags, and at least one, instead of free text around them.
        parallel: whether there may be several.
        separator: the text between tags, where they are required.
        param: the request's field, for errors.
    """
    by_trigger: dict[str, list[Tag]] = {}
    for tag in tags:
        by_trigger.setdefault(tag.trigger, []).append(tag)
    lines, heads, bodies = ["%llguidance {}"], [], []
    side: list[dict[str, str]] = []
    for number, (trigger, group) in enumerate(by_trigger.items()):
        special = table.special(trigger) if trigger else None
        head = f"<[{special}]>" if special is not None else literal(trigger)
        if special is None and trigger and not required:
            lines.append(f"head_{number}[lazy]: TEXT {head}")
            heads.append(f"head_{number}")
        else:
            heads.append(head if required or not trigger else f"TEXT {head}")
        options = []
        for tag in group:
            if tag.grammar is not None:
                side.append({"name": f"middle_{len(side)}", "lark_grammar": tag.grammar})
                middle = f"@middle_{len(side) - 1}"
            else:
                middle = json_rule(tag.schema or {}, param=param, lenient=tag.lenient)
            options.append(f"{table.terms(tag.begin)} {middle} {table.terms(tag.end)}")
        lines.append(f"body_{number}: " + "\n    | ".join(options))
        bodies.append(f"{heads[-1]} body_{number}")
    lines.append("tag: " + " | ".join(bodies))
    lines.append("TEXT: /(.|\\n)*/")
    if required:
        repeat = f"({literal(separator)} tag)*" if separator else "tag*"
        lines.append(f"start: tag {repeat}" if parallel else "start: tag")
    elif "" in by_trigger:
        # Text that begins as a call does must be one.
        begin = _common_beginning([tag.begin for tag in by_trigger[""]])
        begin = begin[: begin.index('": "') + 4] if '": "' in begin else begin
        lines.append(f"BARE: /[ \\n]*/ {literal(begin)} TEXT")
        lines.append("FREE: TEXT & ~BARE")
        lines.append(f"start: FREE | tag ({literal(separator)} tag)*" if parallel else "start: FREE | tag")
    else:
        lines.append("start: tag* TEXT" if parallel else "start: TEXT | tag")
    lark = "\n".join(lines)
    if side:
        return Grammar(json.dumps({"grammars": [{"name": "main", "lark_grammar": lark}, *side]}), param)
    return Grammar(llguidance.LLMatcher.grammar_from_lark(lark), param)


def either(one: Grammar, other: Grammar) -> Grammar:
    """Text of one grammar or of the other."""
    lark = {"name": "main", "lark_grammar": "%llguidance {}\nstart: @one | @other"}
    return Grammar(json.dumps({"grammars": [lark, *_named(one, "one"), *_named(other, "other")]}), one.param)


def after_thoughts(grammar: Grammar, table: GrammarTable, tags: tuple[str, str], *, opened: bool) -> Grammar:
    """Text of a grammar, before which a model may think; where `opened`, the prompt ends inside of thoughts."""
    ids = [table.special(tag) for tag in tags]
    begin, end = (literal(tag) if id is None else f"<[{id}]>" for tag, id in zip(tags, ids, strict=True))
    lines = ["%llguidance {}", "SPACE: /[ \\n]{0,4}/", "TEXT: /(.|\\n)*/"]
    if ids[1] is None:
        lines += [f"thoughts[lazy]: TEXT {end}", "inside: thoughts SPACE"]
    else:
        lines.append(f"inside: TEXT {end} SPACE")
    lines.append("start: inside @answer" if opened else f"start: @answer | {begin} inside @answer")
    lark = {"name": "main", "lark_grammar": "\n".join(lines)}
    return Grammar(json.dumps({"grammars": [lark, *_named(grammar, "answer")]}), grammar.param)


def _named(grammar: Grammar, name: str) -> list[dict[str, Any]]:
    """A grammar's parts, the first of them, where it begins, under this name."""
    if not grammar.text.startswith("{"):  # rules in Lark's notation stay as they are
        return [{"name": name, "lark_grammar": grammar.text}]
    first, *others = json.loads(grammar.text)["grammars"]
    return [first | {"name": name}, *others]


def _common_beginning(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    same = [a == b for a, b in zip(first, last, strict=False)]
    return first[: same.index(False) if False in same else len(same)]
