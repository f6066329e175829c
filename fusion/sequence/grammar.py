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

MOST_BYTES = 64 * 1024  # of a schema or grammar
MOST_DEPTH = 64  # of a schema; llguidance's JSON reader stops at 128
MOST_NODES = 10_000  # objects, lists and values in a schema
MOST_CHOICES = 1_000
MOST_ITEMS = 10_000  # of one list, at least or at most; llguidance takes memory for each
MOST_PROPERTIES = 500  # of one object; compiling takes quadratic time in them
LEAST_MULTIPLE = 0.0001  # the least multipleOf
MOST_MULTIPLE = 10_000  # of multipleOf; compiling 999983 takes half a minute
STEP = 1e-6
"""What a number differs at least by from an exclusive bound that is a whole number."""
LARGEST_CLOSED = 1e9  # beyond it a step is lost in the precision of a double
_DATA = {"const", "enum", "default", "examples"}  # keywords whose values are no schemas
_NAMED = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}

_JSON = {"whitespace_flexible": False, "lenient": False, "coerce_one_of": False}
_OVERRIDES: Any = _JSON  # a TypedDict that llguidance does not export
_LARGE = re.compile(r"panic|too (large|big|complex|many)|limit|fuel", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar in llguidance's own form; `param` is the request's field it came from."""

    text: str
    param: str = "structured_outputs"


def json_schema(schema: Any, *, param: str = "response_format") -> Grammar:
    """JSON that `schema` admits, without white space, properties in the schema's order; `{}` is any object.

    Raises:
        InvalidRequestError: no schema, one over the limits, or with a number that no double holds.
    """
    text = _checked_schema(schema, param)
    try:
        return Grammar(llguidance.LLMatcher.grammar_from_json_schema(text, overrides=_OVERRIDES), param)
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
            raise _wrong(param, "%json should be followed by a schema.") from error
        _checked_schema(schema, param)
    try:
        return Grammar(llguidance.grammar_from("gbnf" if "::=" in text else "lark", text), param)
    except (ValueError, RecursionError) as error:
        raise refusal(str(error), param) from error


def json_rule(schema: Mapping[str, Any], *, param: str = "tools", lenient: bool = False) -> str:
    """The JSON that `schema` admits, as a term of Lark rules.

    Raises:
        InvalidRequestError: a schema over the limits.
    """
    options = _JSON | {"lenient": lenient}
    return "%json " + json.dumps(json.loads(_checked_schema(dict(schema), param)) | {"x-guidance": options})


def literal(text: str) -> str:
    """`text` as a term of Lark rules, nothing for ""."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def short(text: str, param: str) -> str:
    """`text`, checked to be one within the limits.

    Raises:
        InvalidRequestError: it is empty or too long.
    """
    if not isinstance(text, str) or not text.strip():
        raise field_error(param, "should be a text that is not empty.")
    if len(text.encode("utf-8", "surrogatepass")) > MOST_BYTES:
        raise field_error(param, f"is over {MOST_BYTES} bytes; send a smaller grammar.")
    return text


def _checked_schema(schema: Any, param: str) -> str:
    """The schema as JSON text; `x-guidance`, which would change how it is enforced, is left out."""
    if schema is True or schema == {}:
        schema = {"type": "object"}
    if not isinstance(schema, dict):
        raise _wrong(param, "the schema should be a JSON object.")
    nodes, level = 0, [schema]
    for depth in range(MOST_DEPTH + 1):
        nodes += len(level)
        for value in level:
            if isinstance(value, dict):
                _check_cost(value, param)
        if nodes > MOST_NODES:
            raise _wrong(param, f"the schema has over {MOST_NODES} parts; make it smaller.")
        if not level:
            break
        if depth == MOST_DEPTH:
            raise _wrong(param, f"the schema is nested more than {MOST_DEPTH} deep; flatten it or use $defs.")
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    own = {key: value for key, value in schema.items() if key != "x-guidance"}
    return short(json.dumps(_with_closed_bounds(own)), param)


def _with_closed_bounds(schema: Any, *, by_keyword: bool = True) -> Any:
    """The schema with `STEP` beyond every exclusive bound that is a whole number as an inclusive bound.

    llguidance 1.7.6 takes 15 for a number over 15 where the upper bound has the same whole part. What lies within
    a step of the bound is lost, which no answer misses. `by_keyword` is whether the keys of `schema` are keywords,
    not names of properties or definitions.
    """
    if isinstance(schema, list):
        return [_with_closed_bounds(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {
        name: value if by_keyword and name in _DATA else _with_closed_bounds(value, by_keyword=name not in _NAMED)
        for name, value in schema.items()
    }
    if by_keyword and closed.get("type") != "integer":
        for name, instead, step, tighter in (
            ("exclusiveMinimum", "minimum", STEP, max),
            ("exclusiveMaximum", "maximum", -STEP, min),
        ):
            bound = closed.get(name)
            if not isinstance(bound, int | float) or isinstance(bound, bool) or abs(bound) >= LARGEST_CLOSED:
                continue
            other = closed.get(instead, bound + step)
            if float(bound).is_integer() and isinstance(other, int | float):  # else llguidance says what is wrong
                del closed[name]
                closed[instead] = tighter(bound + step, other)
    return closed


def _check_cost(schema: dict[str, Any], param: str) -> None:
    """Refuse what llguidance's own limits let through, though it takes seconds."""
    properties, multiple = schema.get("properties"), schema.get("multipleOf")
    for name in ("minItems", "maxItems"):
        if isinstance(schema.get(name), int | float) and schema[name] > MOST_ITEMS:
            raise _wrong(param, f"{name} should be at most {MOST_ITEMS} to be enforced.")
    if isinstance(properties, dict) and len(properties) > MOST_PROPERTIES:
        raise _wrong(
            param,
            f"the schema has {len(properties)} properties in one object; at most {MOST_PROPERTIES} are allowed.",
        )
    if isinstance(multiple, int | float) and not LEAST_MULTIPLE <= multiple <= MOST_MULTIPLE:
        raise _wrong(param, f"multipleOf should be from {LEAST_MULTIPLE} to {MOST_MULTIPLE} to be enforced.")


def _wrong(param: str, sentence: str) -> InvalidRequestError:
    """The error for a part of the grammar in `param`."""
    return InvalidRequestError(f"{param}: {sentence}", param=param)


def refusal(reason: str, param: str) -> InvalidRequestError:
    """The error for a grammar that llguidance does not take for this reason."""
    if _LARGE.search(reason):
        return _wrong(param, "the grammar is too large to enforce; make it smaller.")
    if "NoExtension" in reason:
        return field_error(param, "admits no text at all; correct the grammar.")
    told = " ".join(reason.split("<state>")[0].split())[:300].rstrip(". ")
    return field_error(param, f"cannot be enforced: {told}.")
