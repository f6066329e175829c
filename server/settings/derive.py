"""Pydantic models derived from dataclasses of options (`fusion.options`), which declare each option once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel, create_model
from pydantic import Field as PydanticField

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


def section(options: type, base: type[BaseModel], *, without: Collection[str] = ()) -> Any:
    """A model with the options' names, types, bounds and defaults, as a part of the file has them."""
    hints = get_type_hints(options, include_extras=True)
    derived: dict[str, Any] = {
        f.name: (_listed(hints[f.name]), _default(f)) for f in fields(options) if f.name not in without
    }
    return create_model(options.__name__, __base__=base, **derived)


def overrides(options: type, base: type[BaseModel], *, without: Collection[str] = ()) -> Any:
    """The same names, types and bounds, each None where it is left out, as a request has them."""
    hints = get_type_hints(options, include_extras=True)
    derived: dict[str, Any] = {
        f.name: (hints[f.name] | None, None) for f in fields(options) if f.name not in without
    }
    return create_model(options.__name__, __base__=base, **derived)


def updated(defaults: Options, given: BaseModel, **known: Any) -> Options:
    """The options with what a request gives in the place of their defaults; `known` stands above both.

    Null is the same as leaving an option out, unless it is a value that the option may have.
    """
    hints = get_type_hints(type(defaults))
    names = {f.name for f in fields(defaults)} & given.model_fields_set - known.keys()
    values = {name: _made(hints[name], getattr(given, name)) for name in names}
    kept = {n: v for n, v in values.items() if v is not None or type(None) in get_args(hints[n])}
    return replace(defaults, **kept, **known)


def made(kind: type[Options], given: BaseModel, **known: Any) -> Options:
    """The options with what a section holds of them, parts and all; `known` stands above it."""
    hints = get_type_hints(kind)
    names = {f.name for f in fields(kind)} & type(given).model_fields.keys() - known.keys()
    return kind(**{name: _made(hints[name], getattr(given, name)) for name in names}, **known)


def _made(hint: Any, value: Any) -> Any:
    """A value of a section as the options that it was derived from have it."""
    match value:
        case BaseModel():
            kind: Any = next(one for one in (hint, *get_args(hint)) if is_dataclass(one))
            return made(kind, value)
        case dict() if get_origin(hint) is dict:
            return {name: _made(get_args(hint)[1], one) for name, one in value.items()}
        case list() if get_origin(hint) is tuple:
            return tuple(_made(get_args(hint)[0], one) for one in value)
        case str() if hint is Path:
            return Path(value)
    return value


def _listed(hint: Any) -> Any:
    """A file has lists, and no tuples."""
    return Annotated[hint, PydanticField(strict=False)] if get_origin(hint) is tuple else hint


def _default(option: Field[Any]) -> Any:
    if option.default_factory is not MISSING:
        return PydanticField(default_factory=option.default_factory)
    return ... if option.default is MISSING else option.default
