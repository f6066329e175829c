"""Fields: what the parameters of a call in XML may hold, each of them a text or JSON, as its schema says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from alignment.errors import InvalidRequestError, field_error
from fusion.sequence.grammar import json_rule, literal
from fusion.sequence.schema import MOST_BYTES, short
from server.http.tools.calls import Tool
from server.http.tools.xml import CLOSING_LINE, LONGEST_NAME

MOST_STEPS = 64  # from a parameter's schema to what it refers to

# Keywords that say nothing of what a value is,
_NOTES = frozenset(
    {
        *("$comment", "$defs", "$id", "$schema", "contentEncoding", "contentMediaType", "default", "definitions"),
        *("deprecated", "description", "examples", "nullable", "readOnly", "title", "writeOnly"),
    }
)
# and those that say nothing of a text.
_OF_OTHERS = frozenset(
    {
        *("additionalProperties", "exclusiveMaximum", "exclusiveMinimum", "items", "maxItems", "maxProperties"),
        *("maximum", "minItems", "minProperties", "minimum", "multipleOf", "patternProperties", "prefixItems"),
        *("properties", "required"),
    }
)
_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int, float),
    "number": (int, float),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


@dataclass(slots=True)
class Field:
    """What a parameter may hold.

    Attributes:
        is_text: any text is one.
        is_open: its schema, or one of several, says nothing of what it is.
        texts: those that it may be.
        others: schemas of what it may be instead, which is written as JSON.
        nullable: whether null is among them.
        lost: a keyword that the grammar cannot hold it to.
    """

    is_text: bool = False
    is_open: bool = False
    texts: list[str] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)
    nullable: bool = False
    lost: str | None = None

    @classmethod
    def of(cls, schema: Any, root: Mapping[str, Any]) -> Field:
        """The field of this schema; references are those within `root`."""
        found = _field(schema, root, set(), MOST_STEPS)
        if not (found.is_text or found.texts or found.others):
            found.is_open = True
        return found

    def read(self, text: str) -> Any:
        """The value that was written: what may be a text is one, and the rest is read as JSON.

        Null is null where that may be as well.
        """
        if self.is_text:
            return None if text == "null" and self.nullable else text
        if text in self.texts or not (self.others or self.is_open):
            return text
        try:
            read = json.loads(text)
            json.dumps(read, allow_nan=False)  # Python reads NaN and 1e999, which JSON does not have
        except (ValueError, RecursionError):
            return text
        return read

    def rule(self, root: Mapping[str, Any], *, lenient: bool) -> str | None:
        """The body of a Lark rule for it and the line that closes it; None where any text is admitted.

        Raises:
            InvalidRequestError: it cannot be held to its schema, and `lenient` is not set.
        """
        rule = None
        try:
            if self.lost is not None and not lenient:
                raise field_error(self.lost, "cannot be enforced for a parameter that is written as a text.")
            if not self.is_text and not self.is_open:
                texts = [literal(text + CLOSING_LINE) for text in dict.fromkeys(self.texts)]
                others = [f"{json_rule(_whole(one, root), lenient=lenient)} {_CLOSE}" for one in self.others]
                rule = "\n    | ".join(texts + others)
        except InvalidRequestError:
            if not lenient:
                raise
        return rule


_CLOSE = literal(CLOSING_LINE)


def rules(tool: Tool, param: str) -> str:
    """Lark rules for the parameters of a call: those that are required, then the others.

    Raises:
        InvalidRequestError: they are over the limit of a grammar, or the tool is strict and they cannot be held to
            its schema.
    """
    schema = tool.schema
    properties: dict[str, Any] = dict(schema.get("properties") or {})
    required = dict.fromkeys(schema.get("required") or ())
    properties |= {name: {} for name in required if name not in properties}
    for name in schema if tool.strict else ():
        if name not in _NOTES | {"type", "properties", "required", "additionalProperties"}:
            raise field_error(
                f"{param}.{name}", "cannot be enforced where calls are written as XML; leave it out."
            )
    lines = ["%llguidance {}"]
    known: dict[str | None, str] = {}
    room = MOST_BYTES // 2  # for values; the names need some too

    def value(schema: Any, where: str) -> str:
        """The name of the rule for a value."""
        try:
            body = Field.of(schema, tool.schema).rule(tool.schema, lenient=not tool.strict)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{where}: {error.message}", param=param) from error
        nonlocal room
        if body is not None and body not in known and not tool.strict:
            room -= len(body)
            body = body if room > 0 else None  # definitions stand with each parameter that refers to them
        if body not in known:
            known[body] = f"value_{len(known)}"
            rest = f": {body}" if body is not None else f"[lazy]: /(.|\\n)*/ {_CLOSE}"
            lines.append(known[body] + rest)
        return known[body]

    terms = []
    for number, name in enumerate(sorted(properties, key=lambda name: name not in required)):
        where = f"{param}.properties.{name}"
        if not name or {">", "\n"} & {*name} or len(name) > LONGEST_NAME:
            if tool.strict:
                raise InvalidRequestError(f"{where}: such a name cannot be written in XML.", param=param)
            continue
        terms.append(f"field_{number}" + ("" if name in required else "?"))
        begin = literal(f"<parameter={name}>\n")
        lines.append(f"field_{number}: {begin} {value(properties[name], where)}")
    others = schema.get("additionalProperties")
    if not properties and others is not False:
        terms = ["field*"]
        named = value(others if isinstance(others, dict) else {}, f"{param}.additionalProperties")
        lines.append(f'field: "<parameter=" /[^>\\n]{{1,{LONGEST_NAME}}}/ ">\\n" {named}')
    lines.insert(1, "start: " + (" ".join(terms) or '""'))
    return short("\n".join(lines), param)


def read(tool: Tool, fields: list[tuple[str, str]]) -> dict[str, Any]:
    """The arguments of a call with these fields."""
    properties, others = tool.schema.get("properties") or {}, tool.schema.get("additionalProperties")
    others = others if isinstance(others, dict) else None
    return {name: Field.of(properties.get(name, others), tool.schema).read(text) for name, text in fields}


def _field(schema: Any, root: Mapping[str, Any], seen: set[int], steps: int) -> Field:
    if not isinstance(schema, dict):
        return Field(is_open=True, lost="false" if schema is False else None)
    if id(schema) in seen:
        return Field()
    seen.add(id(schema))
    said = {name: value for name, value in schema.items() if name not in _NOTES and not name.startswith("x-")}
    types = _types(schema)
    match [*said]:
        case []:
            return Field(is_open=True)
        case ["$ref"] if steps:
            target = _target(said["$ref"], root)
            return Field(is_open=True, lost="$ref") if target is None else _field(target, root, seen, steps - 1)
        case ["anyOf" | "oneOf" | "allOf" as way] if steps and isinstance(said[way], list):
            if way != "allOf" or len(said[way]) == 1:
                return _joined([_field(one, root, seen, steps - 1) for one in said[way]], way)
    if "const" in said or isinstance(said.get("enum"), list):
        return _listed_values(said, types)
    kinds = types or [*_kinds(schema, root)]
    others = [kind for kind in kinds if kind != "string"]
    left = next((name for name in said if name != "type" and name not in _OF_OTHERS), None)
    if "string" in kinds:
        whole = [schema | {"type": others}] if others and types else []
        return Field(is_text=True, others=whole, nullable="null" in others, lost=left)
    if kinds:
        return Field(others=[schema], nullable="null" in kinds)
    return Field(is_open=True, lost=next(iter(said)))


def _joined(fields: list[Field], way: str) -> Field:
    """The field that may be what any of these may."""
    texts = [text for one in fields for text in one.texts]
    others = [other for one in fields for other in one.others]
    lost = next((one.lost for one in fields if one.lost is not None), None)
    if way == "oneOf":
        free = sum(one.is_text or one.is_open for one in fields)
        if free > 1 or (free and texts) or len(set(texts)) < len(texts):
            lost = "oneOf"
        others = [{"oneOf": others}] if len(others) > 1 else others
    return Field(
        is_text=any(one.is_text for one in fields),
        is_open=any(one.is_open for one in fields),
        texts=texts,
        others=others,
        nullable=any(one.nullable for one in fields),
        lost=lost,
    )


def _listed_values(said: dict[str, Any], types: list[str]) -> Field:
    """The field of a schema that lists its values."""
    values = [said["const"]] if "const" in said else said["enum"]
    if types:
        values = [value for value in values if any(_is_of(value, kind) for kind in types)]
    rest = [value for value in values if not isinstance(value, str)]
    return Field(
        texts=[value for value in values if isinstance(value, str)],
        others=[{"enum": rest}] if rest else [],
        nullable=None in rest,
        lost=next((name for name in said if name not in ("const", "enum", "type")), None),
    )


def _is_of(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _KINDS[kind])


def _kinds(schema: Any, root: Mapping[str, Any]) -> set[str]:
    """The types that a schema names, in whatever way."""
    found: set[str] = set()
    left, seen = [schema], set()
    while left:
        one = left.pop()
        if not isinstance(one, dict) or id(one) in seen:
            continue
        seen.add(id(one))
        found |= {*_types(one)}
        for value in [one["const"]] if "const" in one else _listed(one.get("enum")):
            found |= {kind for kind in _KINDS if _is_of(value, kind)}
        for way in ("anyOf", "oneOf", "allOf"):
            left += _listed(one.get(way))
        left.append(_target(one.get("$ref"), root))
    return found


def _types(schema: dict[str, Any]) -> list[str]:
    given = schema.get("type")
    return [kind for kind in _listed(given) or [given] if isinstance(kind, str) and kind in _KINDS]


def _target(reference: Any, root: Mapping[str, Any]) -> Any:
    """What a reference within `root` refers to; None for any other."""
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    target: Any = root
    for step in reference[2:].split("/"):
        target = target.get(step) if isinstance(target, dict) else None
    return target


def _whole(schema: dict[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with the definitions of `root` that it refers to.

    Raises:
        InvalidRequestError: it refers to anything else.
    """
    found: dict[str, dict[str, Any]] = {}
    left = [*_references(schema)]
    while left:
        reference = left.pop()
        way, _, name = str(reference).removeprefix("#/").partition("/")
        name = name.partition("/")[0]
        target = _target(f"#/{way}/{name}", root)
        if way not in ("$defs", "definitions") or not str(reference).startswith("#/") or target is None:
            raise field_error("$ref", "should refer to $defs where calls are written as XML.")
        if name not in found.setdefault(way, {}):
            found[way][name] = target
            left += _references(target)
    return schema | found


def _references(schema: Any) -> Iterator[Any]:
    left = [schema]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left += one.values()
            if "$ref" in one:
                yield one["$ref"]
        elif isinstance(one, list):
            left += one


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
