"""Structured output: the fields that say what an answer must look like, as a constraint on its tokens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from alignment.errors import InvalidRequestError, UnsupportedError
from alignment.text.ids import require_ids
from fusion.sequence.constraint import BadWords, Constraint
from fusion.sequence.grammar import Grammar, choice, json_object, json_schema, regex, rules
from server.http.errors import shorten
from server.http.protocol.sampling import SamplingFields

if TYPE_CHECKING:
    from fusion.ensemble import Ensemble

MOST_WORDS = 128
GUIDED = {"json": json_schema, "regex": regex, "choice": choice, "grammar": rules}


def constraint_of(fields: SamplingFields, ensemble: Ensemble, calls: Grammar | None = None) -> Constraint | None:
    """What the answers must satisfy; `calls` is the grammar of tool calls. Compiles grammars: use a thread.

    Raises:
        InvalidRequestError: a grammar that cannot be enforced, or fields that contradict each other.
        UnsupportedError: a kind of structure that is not built.
    """
    asked = [*_grammars(fields), *([calls] if calls else [])]
    if len(asked) > 1:
        raise InvalidRequestError(
            f"{asked[0].param} and {asked[1].param} both say what the answer looks like; leave one out.",
            param=asked[1].param,
        )
    grammar = asked[0] if asked else None
    words = fields.bad_words or []
    if grammar is None and fields.allowed_token_ids is None and not words:
        return None
    param = grammar.param if grammar else "allowed_token_ids" if fields.allowed_token_ids else "bad_words"
    require_pivot(ensemble, param)
    if grammar is not None and fields.ignore_eos:
        raise InvalidRequestError(f"ignore_eos and {param} exclude each other; leave one out.", param="ignore_eos")
    if fields.allowed_token_ids is not None:
        if not fields.allowed_token_ids:
            raise InvalidRequestError("allowed_token_ids should not be empty.", param="allowed_token_ids")
        require_ids(fields.allowed_token_ids, ensemble.tokenizer.vocabulary_size, param="allowed_token_ids")
    if len(words) > MOST_WORDS or "" in words:
        raise InvalidRequestError(
            f"bad_words should hold at most {MOST_WORDS} texts, none of them empty.", param="bad_words"
        )
    table = ensemble.first.grammar_table
    return Constraint(
        table,
        grammar=grammar,
        allowed_ids=fields.allowed_token_ids,
        bad_words=BadWords(words, table) if words else None,
    )


def require_pivot(ensemble: Ensemble, param: str = "tool_choice") -> None:
    """Grammars are compiled for the pivot's tokens. Raises InvalidRequestError where each prompt decides on it."""
    if ensemble.chooses_pivot:
        raise InvalidRequestError(
            f"{param} needs a fixed pivot, but in {ensemble.name} each prompt decides on it; leave it out.",
            param=param,
        )


def _grammars(fields: SamplingFields) -> list[Grammar]:
    found = []
    if format := fields.response_format:
        found.append(_response_format(format))
    guided = {f"guided_{kind}": (kind, getattr(fields, f"guided_{kind}")) for kind in GUIDED}
    inner = fields.structured_outputs or {}
    guided |= {f"structured_outputs.{kind}": (kind, value) for kind, value in inner.items()}
    for param, (kind, value) in guided.items():
        if value is None or value is False:
            continue
        if kind == "json_object":
            found.append(json_object(param=param))
        elif kind in GUIDED:
            found.append(_guided(kind, value, param))
        elif kind == "structural_tag":
            raise UnsupportedError(f"{param} is not supported yet; leave it out.", param=param)
    return [grammar for grammar in found if grammar is not None]


def _guided(kind: str, value: Any, param: str) -> Grammar:
    if kind == "json" and isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"{param} is not valid JSON.", param=param) from error
    wanted = {"json": dict, "choice": list}.get(kind, str)
    if not isinstance(value, wanted):
        names = {"json": "a JSON schema", "choice": "a list of texts"}
        raise InvalidRequestError(f"{param} should be {names.get(kind, 'a text')}.", param=param)
    return GUIDED[kind](value, param=param)


def _response_format(format: dict[str, Any]) -> Grammar | None:
    match format.get("type"):
        case "text":
            return None
        case "json_object":
            return json_object(param="response_format")
        case "json_schema":
            inner = format.get("json_schema")
            schema = inner.get("schema", {}) if isinstance(inner, dict) else None
            if not isinstance(schema, dict):
                raise InvalidRequestError(
                    "response_format.json_schema.schema should be a JSON schema.",
                    param="response_format.json_schema.schema",
                )
            return json_schema(schema, param="response_format")
        case "structural_tag":
            raise UnsupportedError(
                "response_format of the type structural_tag is not supported yet.", param="response_format"
            )
        case kind:
            raise InvalidRequestError(
                f"response_format.type should be text, json_object or json_schema, not {shorten(kind)}.",
                param="response_format.type",
            )
