"""Schemas: JSON schemas within the limits here, as llguidance takes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from alignment.errors import InvalidRequestError, field_error

MOST_BYTES = 64 * 1024  # of a schema or grammar
MOST_DEPTH = 64  # of a schema; llguidance's JSON reader stops at 128
MOST_NODES = 10_000  # objects, lists and values in a schema
MOST_ITEMS = 10_000  # of one list, at least or at most; llguidance takes memory for each
MOST_PROPERTIES = 500  # of one object; compiling takes quadratic time in them
LEAST_MULTIPLE = 0.0001  # the least multipleOf
MOST_MULTIPLE = 10_000  # of multipleOf; compiling 999983 takes half a minute
STEP = 1e-6
"""What a number differs at least by from an exclusive bound that is a whole number."""
LARGEST_CLOSED = 1e9  # beyond it a step is lost in the precision of a double
DATA = {"const", "enum", "default", "examples"}  # keywords whose values are no schemas
NAMED = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}


def schema_text(schema: Any, param: str) -> str:
    """The schema as JSON text; `x-guidance`, which would change how it is enforced, is left out.

    Raises:
        InvalidRequestError: no schema, or one over the limits.
    """
    if schema is True or schema == {}:
        schema = {"type": "object"}
    if not isinstance(schema, dict):
        raise wrong(param, "the schema should be a JSON object.")
    own = {key: value for key, value in schema.items() if key != "x-guidance"}
    for part in parts(own, param):
        for name in costly(part):
            raise wrong(param, _COSTS[name])
        properties = part.get("properties")
        if isinstance(properties, dict) and len(properties) > MOST_PROPERTIES:
            many = f"the schema has {len(properties)} properties in one object"
            raise wrong(param, f"{many}; at most {MOST_PROPERTIES} are allowed.")
    return short(json.dumps(_with_closed_bounds(own)), param)


def parts(schema: dict[str, Any], param: str) -> list[dict[str, Any]]:
    """All objects in a schema, itself the first.

    Raises:
        InvalidRequestError: there are too many, or they are too deep.
    """
    found: list[dict[str, Any]] = []
    nodes, level = 0, [schema]
    for depth in range(MOST_DEPTH + 1):
        nodes += len(level)
        if nodes > MOST_NODES:
            raise wrong(param, f"the schema has over {MOST_NODES} parts; make it smaller.")
        found += [value for value in level if isinstance(value, dict)]
        if not level:
            break
        if depth == MOST_DEPTH:
            raise wrong(param, f"the schema is nested more than {MOST_DEPTH} deep; flatten it or use $defs.")
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    return found


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
        name: value if by_keyword and name in DATA else _with_closed_bounds(value, by_keyword=name not in NAMED)
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


_COSTS = {
    "minItems": f"minItems should be at most {MOST_ITEMS} to be enforced.",
    "maxItems": f"maxItems should be at most {MOST_ITEMS} to be enforced.",
    "multipleOf": f"multipleOf should be from {LEAST_MULTIPLE} to {MOST_MULTIPLE} to be enforced.",
}


def costly(schema: dict[str, Any]) -> Iterator[str]:
    """The keywords that llguidance's own limits let through, though they take seconds."""
    for name in _COSTS:
        value = schema.get(name)
        if not isinstance(value, int | float):
            continue
        if not LEAST_MULTIPLE <= value <= MOST_MULTIPLE if name == "multipleOf" else value > MOST_ITEMS:
            yield name


def wrong(param: str, sentence: str) -> InvalidRequestError:
    """The error for a part of the grammar in `param`."""
    return InvalidRequestError(f"{param}: {sentence}", param=param)


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
