"""Structured output: the fields that say what an answer must look like, as a constraint on its tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from alignment.errors import InvalidRequestError, field_error
from alignment.text.ids import require_ids
from fusion.sequence.constraint import BadWords, Constraint
from fusion.sequence.grammar import Grammar, choice, json_object, json_schema, regex, rules
from fusion.sequence.grammar_table import GrammarTable
from fusion.sequence.structural import Tag, after_thoughts, either, structural
from fusion.sequence.thoughts import Budget
from server.http.errors import not_built, shorten, shorten_text
from server.http.protocol.sampling import SamplingFields
from server.http.tools.formats import Format
from server.http.tools.offer import GrammarFor, Offer

if TYPE_CHECKING:
    from alignment.text.tokenizer import Tokenizer
    from fusion.ensemble import Ensemble

MOST_WORDS, LONGEST_WORD = 128, 256  # bytes of one, of which the end of a text is compared with each beginning
# A grammar is followed or refused, there is nothing to fall back on; JSON has no white space but what a text has.
_WITHOUT_EFFECT = ("disable_fallback", "disable_any_whitespace")
GUIDED = {"json": json_schema, "regex": regex, "choice": choice, "grammar": rules}


@dataclass(frozen=True, slots=True)
class Around:
    """The form of a chat's answer around what the request asks for.

    Attributes:
        offer: tools that may be called, or must be; a schema then binds answers that call none.
        format: how they are called.
        thoughts: the tags that the answer may think between before it; None where it does not think.
        opened: whether the prompt ends inside of thoughts.
        marks: texts that may be special tokens of the pivot, and may come all the same.
    """

    offer: Offer
    format: Format | None
    thoughts: tuple[str, str] | None = None
    opened: bool = False
    marks: tuple[str, ...] = ()

    def around(self, grammar: GrammarFor | None) -> GrammarFor | None:
        """The grammar of the whole answer."""
        calls = alone = None
        if self.format is not None:
            calls = self.offer.grammar(self.format, demanded=False)
            alone = self.offer.grammar(self.format, demanded=True)
        if calls is None or self.offer.demanded or grammar is None:
            inner = grammar if calls is None else calls
        else:
            inner = _either(alone, grammar)
        thoughts, opened = self.thoughts, self.opened
        if inner is None or thoughts is None:
            return inner
        return lambda table: after_thoughts(inner(table), table, thoughts, opened=opened)


def _either(one: GrammarFor | None, other: GrammarFor) -> GrammarFor:
    return other if one is None else lambda table: either(one(table), other(table))


def budget_of(fields: SamplingFields, tags: tuple[str, str] | None, begun: str | None) -> Budget | None:
    """The limit on the tokens of thoughts, between `tags`; `begun` are those that the prompt ends inside of.

    Raises:
        InvalidRequestError: there is one, but this server does not know thoughts.
    """
    tokens = fields.thinking_token_budget
    if tokens is None or tokens < 0:
        return None
    if tags is None:
        raise field_error(
            "thinking_token_budget",
            "needs to know which tags thoughts stand between; set reasoning_tags in the "
            "server's configuration, or leave it out.",
        )
    return Budget(tags, tokens, begun)


def constraints_of(
    fields: SamplingFields, ensemble: Ensemble, around: Around | None = None, *, budget: Budget | None = None
) -> dict[str, Constraint]:
    """What the answers must satisfy, for each pivot that there may be; empty for nothing. Compiles grammars: slow.

    Raises:
        InvalidRequestError: a grammar that cannot be enforced, or fields that contradict each other.
    """
    asked = list(_asked(fields))
    if len(asked) > 1:
        raise InvalidRequestError(
            f"{asked[0][0]} and {asked[1][0]} both say what the answer looks like; leave one out.",
            param=asked[1][0],
        )
    words = fields.bad_words or []
    grammar = asked[0][1] if asked else None
    if around is not None:
        grammar = around.around(grammar)
    param = asked[0][0] if asked else "tool_choice"
    tags = around.marks if around is not None else budget.tags if budget is not None else ()
    marks = {
        pivot: view.tokenizer.control_tokens(tags if len(view.models) > 1 else ())
        for pivot, view in ensemble.views.items()
    }
    if not (grammar or words or budget or any(marks.values())) and fields.allowed_token_ids is None:
        return {}
    if grammar is not None and fields.ignore_eos:
        raise field_error("ignore_eos", f"and {param} exclude each other; leave one out.")
    if fields.allowed_token_ids is not None:
        if not fields.allowed_token_ids:
            raise field_error("allowed_token_ids", "should not be empty.")
        require_ids(fields.allowed_token_ids, ensemble.tokenizer.vocabulary_size, param="allowed_token_ids")
    if len(words) > MOST_WORDS or not all(0 < len(word.encode()) <= LONGEST_WORD for word in words):
        raise field_error(
            "bad_words",
            f"should hold at most {MOST_WORDS} texts of at most {LONGEST_WORD} bytes, none of them empty.",
        )

    def constraint(pivot: str, grammar: GrammarFor | None) -> Constraint:
        view = ensemble.views[pivot]
        table = view.grammar_table
        return Constraint(
            table,
            grammar=grammar(table) if grammar else None,
            allowed_ids=fields.allowed_token_ids,
            bad_words=BadWords(words, table) if words else None,
            marks=marks[pivot],
            stops=_stops(fields, view.tokenizer),
            thoughts=budget.of(table) if budget else None,
        )

    try:
        return {pivot: constraint(pivot, grammar) for pivot in ensemble.views}
    except InvalidRequestError:
        if around is None or around.format is None or not around.offer.callable:
            raise
    # Tools that nobody asked to be strict are served although their schemas cannot be enforced.
    alone = asked[0][1] if asked else None
    tables = [view.grammar_table for view in ensemble.views.values()]
    if alone is not None:  # what is wrong with it is told as that
        for table in tables:
            table.check(alone(table))
    offer = around.offer.relaxed(around.format, tables)
    try:
        grammar = replace(around, offer=offer).around(alone)
        return {pivot: constraint(pivot, grammar) for pivot in ensemble.views}
    except InvalidRequestError:  # they can one by one, but not together
        grammar = replace(around, offer=offer.without_schemas()).around(alone)
        return {pivot: constraint(pivot, grammar) for pivot in ensemble.views}


def _stops(fields: SamplingFields, tokenizer: Tokenizer) -> set[int]:
    """The control tokens at which the request wants to stop, by id or by name."""
    texts = [fields.stop] if isinstance(fields.stop, str) else fields.stop or []
    return tokenizer.control_tokens(texts).keys() | (tokenizer.special_ids & set(fields.stop_token_ids or []))


def _asked(fields: SamplingFields) -> Iterator[tuple[str, GrammarFor]]:
    """The fields that ask for a grammar, and the grammars."""
    if (format := fields.response_format) and (found := _response_format(format)) is not None:
        yield "response_format", found
    guided = {f"guided_{kind}": (kind, getattr(fields, f"guided_{kind}")) for kind in GUIDED}
    inner = fields.structured_outputs or {}
    guided |= {f"structured_outputs.{kind}": (kind, value) for kind, value in inner.items()}
    for param, (kind, value) in guided.items():
        if value is None or value is False:
            continue
        if kind == "json_object":
            yield param, _fixed(json_object(param=param))
        elif kind in GUIDED:
            yield param, _fixed(_guided(kind, value, param))
        elif kind == "structural_tag":
            yield param, _tags(_json(value, param), param)
        elif kind not in _WITHOUT_EFFECT:
            known = ", ".join([*GUIDED, "json_object", "structural_tag"])
            raise not_built(shorten_text(param), f"is not known; structured_outputs may hold {known}.")


def _fixed(grammar: Grammar) -> GrammarFor:
    return lambda table: grammar


def _guided(kind: str, value: Any, param: str) -> Grammar:
    if kind == "json":
        value = _json(value, param)
    wanted = {"json": dict, "choice": list}.get(kind, str)
    if not isinstance(value, wanted):
        names = {"json": "a JSON schema", "choice": "a list of texts"}
        raise field_error(param, f"should be {names.get(kind, 'a text')}.")
    return GUIDED[kind](value, param=param)


def _json(value: Any, param: str) -> Any:
    """The value of a field that may be given as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise field_error(param, "is not valid JSON.") from error


def _response_format(format: dict[str, Any]) -> GrammarFor | None:
    match format.get("type"):
        case "text":
            return None
        case "json_object":
            schema = format.get("schema")  # as other servers take it; none is any object
            schema = {} if schema is None else schema
            return _fixed(_schema(schema, "response_format.schema", strict=False))
        case "json_schema":
            inner = format.get("json_schema")
            inner = inner if isinstance(inner, dict) else {"schema": None}
            strict = inner.get("strict") is True
            return _fixed(_schema(inner.get("schema", {}), "response_format.json_schema.schema", strict=strict))
        case "structural_tag":
            return _tags(format, "response_format")
        case kind:
            raise field_error(
                "response_format.type",
                f"should be text, json_object, json_schema or structural_tag, not {shorten(kind)}.",
            )


def _schema(schema: Any, where: str, *, strict: bool) -> Grammar:
    if not isinstance(schema, dict):
        raise field_error(where, "should be a JSON schema.")
    return json_schema(schema, param="response_format", lenient=not strict)


def _tags(value: Any, param: str) -> GrammarFor:
    """Free text in which a trigger opens a tag: `structures` and `triggers`, or a `format` of triggered tags.

    Each structure has a `begin`, the `schema` of what follows, and an `end`.
    """
    inner = value.get("format") if isinstance(value, dict) else None
    required = parallel = None
    if isinstance(inner, dict):
        if inner.get("type") != "triggered_tags":
            kind = shorten(inner.get("type"))
            raise not_built(f"{param}.format.type", f"should be triggered_tags, not {kind}.")
        required, parallel = inner.get("at_least_one"), not inner.get("stop_after_first")
        structures, triggers = inner.get("tags"), inner.get("triggers")
    else:
        structures = value.get("structures") if isinstance(value, dict) else None
        triggers = value.get("triggers") if isinstance(value, dict) else None
    for name, given in (("structures", structures), ("triggers", triggers)):
        if not isinstance(given, list) or not given:
            raise InvalidRequestError(f"{param}.{name} should be a list that is not empty.", param=param)
    tags = [_tag(each, triggers, f"{param}.structures[{index}]") for index, each in enumerate(structures or ())]

    def grammar(table: GrammarTable) -> Grammar:
        return structural(tags, table, required=bool(required), parallel=parallel is not False, param=param)

    return grammar


def _tag(structure: Any, triggers: Any, where: str) -> Tag:
    fields = structure if isinstance(structure, dict) else {}
    begin, end, content = fields.get("begin"), fields.get("end"), fields.get("content")
    schema = fields.get("schema", content.get("json_schema") if isinstance(content, dict) else None)
    if not isinstance(begin, str) or not isinstance(end, str) or not isinstance(schema, dict):
        raise field_error(where, "should hold begin, schema and end.")
    trigger = next((t for t in triggers if isinstance(t, str) and t and begin.startswith(t)), None)
    if trigger is None:
        raise InvalidRequestError(f"{where}.begin begins with none of the triggers.", param=where)
    return Tag(trigger, begin.removeprefix(trigger), schema, end)
