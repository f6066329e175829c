"""Problems of a configuration, one line each: place, field, the value found, and the values allowed."""

from __future__ import annotations

import difflib
import reprlib
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from server.settings.complaints import dotted, expectation
from server.settings.document import Document, Loc

SECRET = "api_keys"  # noqa: S105  (the name of the field whose values are never shown)


def describe(error: ErrorDetails, document: Document, schema: type[BaseModel]) -> str:
    """One of pydantic's errors as a line."""
    path, kind = error["loc"], error["type"]
    if path and path[-1] == "[key]":  # pydantic's way to say that the name itself is wrong
        path = path[:-1]
    if kind == "missing":
        return line(document, path[:-1], f"'{path[-1]}' is missing")
    if kind == "extra_forbidden":
        return line(document, path, _unknown(str(path[-1]), _fields(schema, path[:-1])))
    found = "" if SECRET in path else f"found {_shown(error['input'])}; "
    return line(document, path, found + _expectation(error))


def line(document: Document, path: Loc, sentence: str) -> str:
    """`config.yaml:12: models.ada.device: sentence.`"""
    where = document.origin(path)
    return f"{where}: {dotted(path)}: {sentence}." if path else f"{where}: {sentence}."


def _expectation(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "literal_error":
            return "allowed: " + str(context["expected"]).replace(" or ", ", ").replace("'", "")
        case "string_pattern_mismatch":
            return "allowed: cpu, mps, cuda, cuda:N"
        case "model_type" | "dict_type":
            return "should be a mapping of names to values"
        case "string_type" if isinstance(error["input"], int | float):
            return "should be text; put it in quotes"
        case _:
            return expectation(error) or error["msg"].rstrip(".")


def _unknown(name: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(name, allowed, n=1)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    return f"unknown field{hint}; allowed: {', '.join(allowed)}"


def _fields(schema: type[BaseModel], path: Loc) -> list[str]:
    """The names of the fields that the section at `path` has."""
    section: Any = schema
    for step in path:
        if isinstance(section, type) and issubclass(section, BaseModel):
            section = section.model_fields[str(step)].annotation
        else:
            section = get_args(section)[1]  # a mapping of names to sections
    return list(section.model_fields)


def _shown(value: Any) -> str:
    match value:
        case None:
            return "null"
        case dict():
            return "a mapping" if value else "an empty mapping"
        case list():
            return "a list" if value else "an empty list"
        case bool():
            return str(value).lower()
        case _:
            return reprlib.repr(value)
