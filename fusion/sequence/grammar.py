"""Grammars: what an answer must look like, compiled by llguidance over the bytes of a vocabulary.

A `Grammar` is a description that is no larger than the limits below; a `GrammarTable` is the vocabulary it is
compiled for. State while decoding is a `Constraint`'s.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import llguidance
import numpy as np
from numpy.typing import NDArray

from alignment.errors import InvalidRequestError
from alignment.text.tokenizer import Tokenizer

MOST_BYTES = 64 * 1024  # of a schema or grammar
MOST_DEPTH = 64  # of a schema; llguidance's JSON reader stops at 128
MOST_NODES = 10_000  # objects, lists and values in a schema
MOST_CHOICES = 1_000
MOST_PROPERTIES = 500  # of one object; compiling takes quadratic time in them
LEAST_MULTIPLE = 0.0001  # the least multipleOf
MOST_MULTIPLE = 10_000  # of multipleOf; compiling 999983 takes half a minute
COMPILED = 32  # compiled grammars that are kept

Bits = NDArray[np.uint8]

_JSON = {"whitespace_flexible": False, "lenient": False, "coerce_one_of": False}
_OVERRIDES: Any = _JSON  # a TypedDict that llguidance does not export
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,  # about 20 ms
    "step_lexer_fuel": 200_000,  # about 14 ms
    "step_max_items": 50_000,
    "max_items_in_row": 10_000,
    "max_lexer_states": 20_000,  # 1 to 2 kB each
    "max_grammar_size": 50_000,
    "verbose_errors": False,
}
_LARGE = re.compile(r"panic|too (large|big|complex|many)|limit|fuel", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar in llguidance's own form; `param` is the request's field it came from."""

    text: str
    param: str = "structured_outputs"


@dataclass(frozen=True, slots=True)
class Tag:
    """A marked part of an answer, such as a tool call.

    Attributes:
        trigger: the text that opens it; where it spells a special token, that token; "" for a part that begins
            with `{` at the beginning of the answer.
        begin: the text that follows the trigger at once, special tokens in it by their spelling.
        schema: of the JSON value that follows; None for a `grammar`.
        end: the text that closes it, likewise.
        grammar: the Lark rules for the middle, where it is no JSON; they begin with `start:`.
        lenient: keywords of the schema that cannot be enforced are left out, instead of refused.
    """

    trigger: str
    begin: str
    schema: Mapping[str, Any] | None
    end: str
    grammar: str | None = None
    lenient: bool = False


def json_schema(schema: Any, *, param: str = "response_format") -> Grammar:
    """JSON that `schema` admits, without white space, properties in the schema's order; `{}` is any object.

    Raises:
        InvalidRequestError: no schema, or one over the limits.
    """
    text = _checked_schema(schema, param)
    return Grammar(llguidance.LLMatcher.grammar_from_json_schema(text, overrides=_OVERRIDES), param)


def json_object(*, param: str = "response_format") -> Grammar:
    """Any JSON object."""
    return json_schema({"type": "object"}, param=param)


def regex(pattern: str, *, param: str = "structured_outputs") -> Grammar:
    """Text that matches `pattern` from end to end."""
    return Grammar(llguidance.LLMatcher.grammar_from_regex(_short(pattern, param)), param)


def choice(texts: Sequence[str], *, param: str = "structured_outputs") -> Grammar:
    """One of `texts`."""
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise InvalidRequestError(f"{param} should be a list of texts that are not empty.", param=param)
    if len(texts) > MOST_CHOICES:
        raise InvalidRequestError(
            f"{param} holds {len(texts)} choices; at most {MOST_CHOICES} are allowed.", param=param
        )
    lark = "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
    return Grammar(llguidance.LLMatcher.grammar_from_lark(_short(lark, param)), param)


def rules(text: str, *, param: str = "structured_outputs") -> Grammar:
    """A grammar in Lark's notation or in GBNF (distinguished by `::=`).

    Raises:
        InvalidRequestError: GBNF that cannot be read.
    """
    _short(text, param)
    try:
        return Grammar(llguidance.grammar_from("gbnf" if "::=" in text else "lark", text), param)
    except (ValueError, RecursionError) as error:
        raise _refusal(str(error), param) from error


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
                side.append({"name": f"middle_{len(side)}", "lark_grammar": _short(tag.grammar, param)})
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
    lines = ["%llguidance {}", "SPACE: /[ \\n]*/", "TEXT: /(.|\\n)*/"]
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


class GrammarTable:
    """A vocabulary as llguidance sees it, from the surfaces that Tutti itself writes text with.

    Attributes:
        width: of the logits, V; ids beyond the vocabulary are never admitted.
        end_ids: ids that end an answer.
        surfaces: the bytes of each id, b"" for special tokens, padding and bytes that are in no UTF-8.
        text_ids: bool [V], ids that stand for text.
        text_bits, end_bits: those that stand for text and those that end an answer, a bit each as in `bits_of`.
    """

    def __init__(self, tokenizer: Tokenizer, *, width: int, end_ids: Sequence[int]) -> None:
        self.width = max(width, tokenizer.vocabulary_size)
        self.end_ids = tuple(end_ids)
        found = [surface or b"" for surface in tokenizer.surfaces]
        # llguidance marks special tokens with a first byte of 0xFF, which is in no UTF-8.
        self.surfaces = [b"" if s.startswith(b"\xff") else s for s in found]
        self.surfaces += [b""] * (self.width - len(found))
        self.text_ids: NDArray[np.bool_] = np.array([bool(s) for s in self.surfaces])
        self.text_bits = self.bits_of(np.flatnonzero(self.text_ids))
        self.end_bits = self.bits_of(self.end_ids)
        self._special = {str(tokenizer.hf.convert_ids_to_tokens(id)): id for id in tokenizer.special_ids}
        # Of several ids with one surface llguidance admits one only: the one that the tokenizer writes.
        alone = {id for id in tokenizer.byte_ids if id is not None} if tokenizer.kind == "sentencepiece" else set()
        first: dict[bytes, int] = {}
        for id in sorted(range(len(self.surfaces)), key=lambda id: (id in alone, id)):
            if self.surfaces[id]:
                first.setdefault(self.surfaces[id], id)
        self._same = {id: first[s] for id, s in enumerate(self.surfaces) if s and first[s] != id}
        self._twins = np.fromiter(self._same.keys(), np.int64, len(self._same))
        self._originals = np.fromiter(self._same.values(), np.int64, len(self._same))
        self._encode = tokenizer.continuation.encode
        self.ll = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Wrapped(self)), n_vocab=self.width, eos_token=list(self.end_ids)
        )
        self._compiled: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def special(self, text: str) -> int | None:
        """The id of the special token spelled `text`."""
        return self._special.get(text)

    def terms(self, text: str) -> str:
        """`text` as terms of Lark rules, each special token that it spells as that token."""
        spelled = "|".join(map(re.escape, sorted(filter(None, self._special), key=len, reverse=True)))
        pieces = re.split(f"({spelled})", text) if spelled else [text]
        return " ".join(
            f"<[{self._special[piece]}]>" if piece in self._special else literal(piece)
            for piece in pieces
            if piece
        )

    def original(self, id: int) -> int:
        """The id that llguidance knows for the surface of `id`."""
        return self._same.get(id, id)

    def words(self, rows: int) -> NDArray[np.int32]:
        """Room for the bits of so many sequences, as llguidance fills it: int32 [rows, V / 32], all 0."""
        return np.zeros((rows, (self.width + 31) // 32), np.int32)

    def bits_of(self, ids: Sequence[int] | NDArray[np.int64]) -> Bits:
        """A set of ids, uint8 [V / 8] in whole words of four, a bit each in little order."""
        bits: Bits = self.words(1)[0].view(np.uint8)
        places = np.asarray(ids, np.int64)
        np.bitwise_or.at(bits, places >> 3, (1 << (places & 7)).astype(np.uint8))
        return bits

    def spread(self, bits: Bits) -> None:
        """Admit every id whose surface is admitted."""
        if len(self._twins):
            admitted = bits[self._originals >> 3] >> (self._originals & 7) & 1
            np.bitwise_or.at(bits, self._twins >> 3, (admitted << (self._twins & 7)).astype(np.uint8))

    def compile(self, grammar: Grammar) -> llguidance.LLMatcher:
        """A matcher at the beginning of `grammar`. Slow the first time (milliseconds to a second): use a thread.

        Raises:
            InvalidRequestError: llguidance cannot enforce it; the message names the keyword.
        """
        with self._lock:
            if (kept := self._compiled.get(grammar.text)) is not None:
                self._compiled.move_to_end(grammar.text)
                return kept.deep_copy()
        limits = llguidance.LLParserLimits(**_LIMITS)
        matcher = llguidance.LLMatcher(self.ll, grammar.text, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # some grammars, such as one that is nothing but itself, fail here only
        if matcher.is_error():
            raise _refusal(matcher.get_error(), grammar.param)
        with self._lock:
            self._compiled[grammar.text] = matcher.deep_copy()
            if len(self._compiled) > COMPILED:
                self._compiled.popitem(last=False)
        return matcher


class _Wrapped:
    """The object that llguidance builds its tokenizer from."""

    bos_token_id = None

    def __init__(self, table: GrammarTable) -> None:
        self.eos_token_id = table.end_ids[0]
        self.special_token_ids = sorted({*table._special.values(), *table.end_ids})
        self.tokens = ["" if id in table._same else surface for id, surface in enumerate(table.surfaces)]
        self.tokens = [token or b"" for token in self.tokens]
        for text, id in table._special.items():
            self.tokens[id] = text.encode()
        self._table = table

    def __call__(self, text: str) -> list[int]:
        if isinstance(text, bytes):
            raise TypeError("text only")  # llguidance asks once, and sends text from then on
        return [self._table.original(id) for id in self._table._encode(text)]


def _common_beginning(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    same = [a == b for a, b in zip(first, last, strict=False)]
    return first[: same.index(False) if False in same else len(same)]


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


def _short(text: str, param: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise InvalidRequestError(f"{param} should be a text that is not empty.", param=param)
    if len(text.encode("utf-8", "surrogatepass")) > MOST_BYTES:
        raise InvalidRequestError(f"{param} is over {MOST_BYTES} bytes; send a smaller grammar.", param=param)
    return text


def _checked_schema(schema: Any, param: str) -> str:
    """The schema as JSON text; `x-guidance`, which would change how it is enforced, is left out."""
    if schema is True or schema == {}:
        schema = {"type": "object"}
    if not isinstance(schema, dict):
        raise InvalidRequestError(f"{param}: the schema should be a JSON object.", param=param)
    nodes, level = 0, [schema]
    for depth in range(MOST_DEPTH + 1):
        nodes += len(level)
        for value in level:
            if isinstance(value, dict):
                _check_cost(value, param)
        if nodes > MOST_NODES:
            raise InvalidRequestError(
                f"{param}: the schema has over {MOST_NODES} parts; make it smaller.", param=param
            )
        if not level:
            break
        if depth == MOST_DEPTH:
            raise InvalidRequestError(
                f"{param}: the schema is nested more than {MOST_DEPTH} deep; flatten it or use $defs.", param=param
            )
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    return _short(json.dumps({key: value for key, value in schema.items() if key != "x-guidance"}), param)


def _check_cost(schema: dict[str, Any], param: str) -> None:
    """Refuse what llguidance's own limits let through, though it takes seconds."""
    properties, multiple = schema.get("properties"), schema.get("multipleOf")
    if isinstance(properties, dict) and len(properties) > MOST_PROPERTIES:
        raise InvalidRequestError(
            f"{param}: the schema has {len(properties)} properties in one object; at most {MOST_PROPERTIES} "
            "are allowed.",
            param=param,
        )
    if isinstance(multiple, int | float) and not LEAST_MULTIPLE <= multiple <= MOST_MULTIPLE:
        raise InvalidRequestError(
            f"{param}: multipleOf should be from {LEAST_MULTIPLE} to {MOST_MULTIPLE} to be enforced.", param=param
        )


def _refusal(reason: str, param: str) -> InvalidRequestError:
    if _LARGE.search(reason):
        return InvalidRequestError(f"{param}: the grammar is too large to enforce; make it smaller.", param=param)
    if "NoExtension" in reason:
        return InvalidRequestError(f"{param} admits no text at all; correct the grammar.", param=param)
    told = " ".join(reason.split("<state>")[0].split())[:300].rstrip(". ")
    return InvalidRequestError(f"{param} cannot be enforced: {told}.", param=param)
