"""Overrides from the environment: TUTTI_SERVER__PORT=9000 stands for `server: {port: 9000}`.

Names are matched without regard to case, and any character that a variable cannot hold counts as an
underscore: TUTTI_ENSEMBLES__TUTTI_DEMO__PIVOT reaches the ensemble `tutti-demo`. Values are written as in
the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from alignment.errors import ConfigError
from server.settings.document import Document, parse

PREFIX = "TUTTI_"
NESTING = "__"
NAMED = {"models": "model", "ensembles": "ensemble"}


# What Kubernetes puts into variables named after a service: TUTTI_SERVER_PORT=tcp://10.0.0.1:8000
_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


def override(document: Document, environ: Mapping[str, str], schema: type[BaseModel]) -> None:
    """Put every `TUTTI_A__B` of `environ` into the document, whose fields are those of `schema`.

    A variable without a double underscore is ignored, since container platforms set TUTTI_PORT and the like; but
    one that spells a field with single underscores is refused, since it was probably meant for Tutti.

    Raises:
        ConfigError: a variable that names no model or ensemble of the file, fits two, holds no YAML value, or
            lacks its double underscores.
    """
    for variable in sorted(environ):
        if not variable.startswith(PREFIX):
            continue
        if NESTING in variable:
            _put(document, variable, environ[variable])
        elif not _ADDRESS.match(environ[variable]):
            _refuse_if_meant(document, variable, schema)


def _refuse_if_meant(document: Document, variable: str, schema: type[BaseModel]) -> None:
    given = _folded(variable.removeprefix(PREFIX))
    for path in _fields(schema, document.data):
        steps = [_folded(step) for step in path]
        if len(steps) > 1 and "_".join(steps) == given:
            meant = PREFIX + NESTING.join(steps).upper()
            raise ConfigError(f"{variable}: has no effect; write {meant}, two underscores between names.")


def _fields(annotation: Any, place: Any) -> Iterator[tuple[str, ...]]:
    """The paths of all fields below a place of the document whose type is `annotation`."""
    inside = place if isinstance(place, dict) else {}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        below = {name: field.annotation for name, field in annotation.model_fields.items()}
    elif get_origin(annotation) is dict:
        below = dict.fromkeys(inside, get_args(annotation)[1])
    else:
        below = {}
    for name, inner in below.items():
        yield (name,)
        yield from ((name, *rest) for rest in _fields(inner, inside.get(name)))


def _put(document: Document, variable: str, text: str) -> None:
    *outer, last = variable.removeprefix(PREFIX).split(NESTING)
    path: tuple[str, ...] = ()
    place = document.data
    for segment in outer:
        key = _key(place, segment, path, variable)
        path = (*path, key)
        if not isinstance(place.get(key), dict):
            place[key] = {}
            document.origins[path] = variable
        place = place[key]
    key = _key(place, last, path, variable)
    place[key] = _value(variable, text)
    for below in [known for known in document.origins if known[: len(path) + 1] == (*path, key)]:
        del document.origins[below]
    document.origins[(*path, key)] = variable


def _key(place: dict[str, Any], segment: str, path: tuple[str, ...], variable: str) -> str:
    matches = [key for key in place if _folded(key) == _folded(segment)]
    if len(matches) > 1:
        raise ConfigError(f"{variable}: fits both {' and '.join(map(repr, matches))}; rename one of them.")
    if matches:
        return matches[0]
    if len(path) == 1 and path[0] in NAMED:
        missing, known = f"{NAMED[path[0]]} '{segment.lower()}'", ", ".join(place) or "none"
        raise ConfigError(f"{variable}: there is no {missing}; the file has {known}.")
    return segment if path[-1:] == ("environment",) else segment.lower()


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "_", name.lower())


def _value(variable: str, text: str) -> Any:
    try:
        return parse(f"value: {text}", variable).data["value"]
    except ConfigError:  # the text may be a secret: it is not repeated
        raise ConfigError(f"{variable}: does not hold a YAML value; put text in quotes.") from None
