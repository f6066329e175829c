"""YAML text as plain data that remembers where each value stands.

Only what a configuration needs is read: mappings with text keys, lists, text, numbers, booleans, null.
Size, depth and the number of values (after aliases are followed) are bounded, so that no text can keep the
reader busy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from alignment.errors import ConfigError

Loc = tuple[str | int, ...]

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16
MAX_VALUES = 20_000

_TAG = "tag:yaml.org,2002:"
_TYPED = {_TAG + name for name in ("int", "float", "bool", "null")}
_TEXT = {_TAG + "str", _TAG + "timestamp"}  # a date has no use here, a revision called 2024-06-01 has


@dataclass
class Document:
    """A configuration as data, with the origin of each value: `file:line`, or an environment variable."""

    name: str
    data: dict[str, Any]
    origins: dict[Loc, str] = field(default_factory=dict)

    def origin(self, path: Loc) -> str:
        """The place where `path`, or the nearest thing around it, was written."""
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path, self.name)


def parse(text: str, name: str) -> Document:
    """Read one YAML document whose top is a mapping.

    Raises:
        ConfigError: not YAML, several documents, a key twice or not text, a tag, or too large.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{name}: larger than {MAX_BYTES // 1024} KiB; a configuration is a few pages.")
    loader = yaml.SafeLoader
    try:
        _check_depth(yaml.parse(text, Loader=loader), name)
        top = yaml.compose(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        detail = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{name}:{line}: not valid YAML: {detail}.") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        raise ConfigError(f"{name}:{line}: not valid YAML: unprintable characters are not allowed.") from None
    if top is None:
        raise ConfigError(f"{name}: the file is empty; it needs at least one entry under 'models'.")
    if not isinstance(top, yaml.MappingNode):
        kind = "a list" if isinstance(top, yaml.SequenceNode) else "a single value"
        raise ConfigError(f"{name}:{_line(top)}: should be a mapping with 'models', not {kind}.")
    reader = _Reader(name)
    return Document(name, reader.read(top, ()), reader.origins)


def _check_depth(events: Iterator[yaml.Event], name: str) -> None:
    """Refuse deep nesting before anything recurses over it."""
    depth = 0
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ConfigError(f"{name}:{_line(event)}: nested more than {MAX_DEPTH} levels deep.")


class _Reader:
    """Turns nodes into data, counting values and noting lines on the way."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.origins: dict[Loc, str] = {}
        self.values = 0
        self.scalars = yaml.constructor.SafeConstructor()

    def read(self, node: yaml.Node, path: Loc) -> Any:
        self.values += 1
        if self.values > MAX_VALUES or len(path) > MAX_DEPTH:
            raise self._error(node, "aliases repeat each other into something too large")
        self.origins.setdefault(path, f"{self.name}:{_line(node)}")
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        raise self._error(node, f"the tag '{node.tag}' has no place in a configuration")

    def _mapping(self, node: yaml.MappingNode, path: Loc) -> dict[str, Any]:
        lines: dict[str, int] = {}
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == _TAG + "merge":
                merged = self._merge(value, path) | merged
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag not in _TEXT:
                found = key.value[:40] if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise self._error(key, f"found {found} where a name should be; put such a name in quotes")
            if key.value in lines:
                raise self._error(key, f"'{key.value}' is given twice (first in line {lines[key.value]})")
            lines[key.value] = _line(key)
            self.origins[(*path, key.value)] = f"{self.name}:{_line(key)}"
            own[key.value] = self.read(value, (*path, key.value))
        return merged | own

    def _merge(self, node: yaml.Node, path: Loc) -> dict[str, Any]:
        """Return the fields that `<<: *defaults` merges in; explicit keys and earlier mappings win."""
        merged: dict[str, Any] = {}
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(source, yaml.MappingNode):
                raise self._error(node, "'<<' takes a mapping, or a list of mappings")
            merged = self.read(source, path) | merged
        return merged

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag in _TEXT:
            return node.value
        if node.tag not in _TYPED:
            raise self._error(node, f"the tag '{node.tag}' has no place in a configuration")
        try:
            return self.scalars.construct_object(node)
        except (ValueError, LookupError):  # an empty text that is said to be a number, for one
            sentence = f"'{node.value[:40]}' is not a value of its type; put text in quotes"
            raise self._error(node, sentence) from None

    def _error(self, node: yaml.Node, sentence: str) -> ConfigError:
        return ConfigError(f"{self.name}:{_line(node)}: {sentence}.")


def _line(marked: yaml.Node | yaml.Event) -> int:
    mark = marked.start_mark
    return mark.line + 1 if mark is not None else 1
