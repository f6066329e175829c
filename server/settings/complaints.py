"""Pydantic's complaints in plain words, for configurations and requests alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_KINDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def expectation(error: Mapping[str, Any]) -> str | None:
    """`should be ...`, to go on after the name of the field; None for a complaint with words of its own."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in _KINDS:
        return f"should be {_KINDS[kind]}"
    match kind:
        case "too_short" | "string_too_short":
            least = context["min_length"]
            return "should not be empty" if least == 1 else f"should have at least {least} {_unit(kind)}"
        case "too_long" | "string_too_long":
            return f"should have at most {context['max_length']} {_unit(kind)}"
        case _ if error["msg"].startswith("Input should"):
            return str(error["msg"]).removeprefix("Input ").rstrip(".")
    return None


def dotted(path: Sequence[str | int]) -> str:
    """`ensembles.demo.members[2]`"""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _unit(kind: str) -> str:
    return "characters" if kind.startswith("string") else "entries"
