"""Lenience: schemas without what cannot be enforced in them, where nobody asked for them to be strict.

llguidance itself passes over keywords that it does not know, but patterns that it cannot take it refuses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import llguidance

from alignment.errors import InvalidRequestError
from fusion.sequence.schema import DATA, NAMED, costly, parts

T = TypeVar("T")
E = TypeVar("E")

PATTERN_WORK = 200_000  # characters of patterns that are tried; about a tenth of a second


def enforceable(schemas: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The schemas without costly numbers and without patterns that llguidance cannot take.

    Patterns that there is no work left for are left out as well. A schema over the limits stays as it is.
    """
    bounded = [_is_bounded(schema) for schema in schemas]
    found: dict[str, None] = {}
    for schema, is_bounded in zip(schemas, bounded, strict=True):
        if is_bounded:
            _without(schema, lambda pattern: found.setdefault(pattern) is None)
    wrong = {
        pattern
        for pattern, _ in refused_among(
            list(found), _refusal, cost=lambda pattern: len(pattern) + 50, work=PATTERN_WORK
        )
    }
    return [
        _without(schema, lambda pattern: pattern not in wrong) if is_bounded else schema
        for schema, is_bounded in zip(schemas, bounded, strict=True)
    ]


def refused_among(
    items: Sequence[T], refusal: Callable[[Sequence[T]], E | None], *, cost: Callable[[T], int], work: int
) -> Iterator[tuple[T, E | None]]:
    """The items that are refused and why, found by halves; None where there was no work left to find out.

    Args:
        items: of which all may be fine.
        refusal: why several of them are refused together.
        cost: of looking at one of them.
        work: what looking at them may cost in all.
    """
    groups = [items] if items else []
    while groups:
        group = groups.pop()
        price = sum(map(cost, group))
        error = None
        if price <= work:
            work -= price
            if (error := refusal(group)) is None:
                continue
        if len(group) == 1:
            yield group[0], error
        else:
            groups += [group[len(group) // 2 :], group[: len(group) // 2]]


def _is_bounded(schema: dict[str, Any]) -> bool:
    try:
        parts(schema, "")
    except InvalidRequestError:
        return False
    return True


def _refusal(patterns: Sequence[str]) -> str | None:
    """Why llguidance does not take these patterns."""
    strings = [{"type": "string", "pattern": pattern} for pattern in patterns]
    schema = {"type": "array", "prefixItems": strings, "minItems": len(strings)}
    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
    except ValueError as error:
        return str(error)
    return llguidance.LLMatcher.validate_grammar(grammar) or None


def _without(schema: dict[str, Any], takes: Callable[[str], bool]) -> dict[str, Any]:
    """The schema without costly numbers and without the patterns that are not taken."""
    left_out = set(costly(schema))
    if isinstance(pattern := schema.get("pattern"), str) and not takes(pattern):
        left_out.add("pattern")
    if isinstance(by_pattern := schema.get("patternProperties"), dict):
        taken = {pattern: value for pattern, value in by_pattern.items() if takes(pattern)}
        if len(taken) < len(by_pattern):  # what is said of other keys would hold for those of the rest
            left_out.add("additionalProperties")
            schema = schema | {"patternProperties": taken}
    return {
        name: value if name in DATA else _within(value, takes, named=name in NAMED)
        for name, value in schema.items()
        if name not in left_out
    }


def _within(value: Any, takes: Callable[[str], bool], *, named: bool) -> Any:
    """The value of a keyword; `named` where its own keys are names and no keywords."""
    if isinstance(value, list):
        return [_within(one, takes, named=False) for one in value]
    if not isinstance(value, dict):
        return value
    if named:
        return {name: _within(one, takes, named=False) for name, one in value.items()}
    return _without(value, takes)
