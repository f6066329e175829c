"""Grammars: what an answer must look like, in llguidance's form and no larger than the limits here.

A `GrammarTable` compiles them for a vocabulary; the state while decoding is a `Constraint`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import llguidance

from alignment.errors import InvalidRequestError, field_error
from fusion.sequence.lenience import enforceable
from fusion.sequence.schema import schema_text, short, wrong

MOST_CHOICES = 1_000
_LARGE = re.compile(r"panic|too (large|big|complex|many)|limit|fuel", re.IGNORECASE)
_EXCERPT = re.compile(r"\n(?= +(\d+ \| |while processing ))")  # where an error goes on with what it is about


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar in llguidance's own form; `param` is the request's field it came from."""

    text: str
    param: str = "structured_outputs"


def json_schema(schema: Any, *, param: str = "response_format", lenient: bool = False) -> Grammar:
    """JSON that `schema` admits, without white space, properties in the schema's order; `{}` is any object.

    With `lenient` keywords that cannot be enforced are left out, instead of refused.

    Raises:
        InvalidRequestError: no schema, one over the limits, or with a number that no double holds.
    """
    if lenient and isinstance(schema, dict):
        [schema] = enforceable([schema])
    text = schema_text(schema, param)
    try:
        return Grammar(llguidance.LLMatcher.grammar_from_json_schema(text, overrides=_options(lenient)), param)
    except ValueError as error:
        raise refusal(str(error), param) from error


def json_object(*, param: str = "response_format") -> Grammar:
    """Any JSON object."""
    return json_schema({"type": "object"}, param=param)


def regex(pattern: str, *, param: str = "structured_outputs") -> Grammar:
    """Text that matches `pattern` from end to end."""
    return Grammar(llguidance.LLMatcher.grammar_from_regex(short(pattern, param)), param)


def choice(texts: Sequence[str], *, param: str = "structured_outputs") -> Grammar:
    """One of `texts`."""
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise field_error(param, "should be a list of texts that are not empty.")
    if len(texts) > MOST_CHOICES:
        raise field_error(param, f"holds {len(texts)} choices; at most {MOST_CHOICES} are allowed.")
    lark = "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
    return Grammar(llguidance.LLMatcher.grammar_from_lark(short(lark, param)), param)


def rules(text: str, *, param: str = "structured_outputs") -> Grammar:
    """A grammar in Lark's notation or in GBNF (distinguished by `::=`).

    Raises:
        InvalidRequestError: GBNF that cannot be read, or a schema in it over the limits.
    """
    short(text, param)
    if text.lstrip().startswith("{"):  # llguidance's own form, in which schemas would get past the limits
        raise field_error(param, "should be in Lark's notation or in GBNF, not JSON.")
    for found in re.finditer(r"%json\s*", text):
        try:
            schema, _ = json.JSONDecoder().raw_decode(text, found.end())
        except (ValueError, RecursionError) as error:
            raise wrong(param, "%json should be followed by a schema.") from error
        schema_text(schema, param)
    try:
        return Grammar(llguidance.grammar_from("gbnf" if "::=" in text else "lark", text), param)
    except (ValueError, RecursionError) as error:
        raise refusal(str(error), param) from error


def json_rule(schema: Mapping[str, Any], *, param: str = "tools", lenient: bool = False) -> str:
    """The JSON that `schema` admits, as a term of Lark rules.

    With `lenient` llguidance leaves out keywords that it does not know; `enforceable` leaves out more.

    Raises:
        InvalidRequestError: a schema over the limits.
    """
    text = schema_text(dict(schema), param)
    return "%json " + json.dumps(json.loads(text) | {"x-guidance": _options(lenient)})


def _options(lenient: bool) -> Any:  # a TypedDict that llguidance does not export
    return {"whitespace_flexible": False, "lenient": lenient, "coerce_one_of": False}


def literal(text: str) -> str:
    """`text` as a term of Lark rules, nothing for ""."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def refusal(reason: str, param: str) -> InvalidRequestError:
    """The error for a grammar that llguidance does not take for this reason."""
    end = found.start() if (found := _EXCERPT.search(reason)) else len(reason)
    reason, excerpt = reason[:end], reason[end:]
    if _LARGE.search(reason) and "parse error" not in reason:  # which quotes the pattern
        return wrong(param, "the grammar is too large to enforce; make it smaller.")
    if "NoExtension" in reason:
        return field_error(param, "admits no text at all; correct the grammar.")
    _, in_schema, told = reason.rpartition("failed to compile JSON schema: ")
    told += "" if in_schema else excerpt  # of a schema it is all of it
    told = " ".join(told.split("<state>")[0].split())[:300].rstrip(". ")
    return field_error(param, f"cannot be enforced: {told}.")
