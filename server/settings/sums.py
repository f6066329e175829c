"""Sums of log-probabilities as parts of the file and of a request, from the options that declare them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, create_model
from pydantic_core import PydanticCustomError

from fusion.options import Contrast, Guidance, Mask, Proxy
from server.settings.derive import section

NAMES = ("mask", "contrast", "proxy", "guidance")
ROLES = ("system", "user", "assistant")


def with_sums(base: type[BaseModel], part: type[BaseModel]) -> Any:
    """`base` with the fields of `NAMES`, each None or a part of its own on top of `part`."""
    guidance = create_model(
        "Guidance",
        __base__=section(Guidance, part, without=("negative",)),
        negative=(Annotated[Any, AfterValidator(_negative)], None),
    )
    fields: dict[str, Any] = {
        "mask": (Annotated[section(Mask, part) | None, BeforeValidator(_off)], None),
        "contrast": (section(Contrast, part) | None, None),
        "proxy": (section(Proxy, part) | None, None),
        "guidance": (guidance | None, None),
    }
    return create_model(base.__name__, __base__=base, **fields)


def _off(mask: Any) -> Any:
    return {"off": True} if mask is False else mask


def _negative(value: Any) -> Any:
    """Text, or messages as plain role and content."""
    if value is None or isinstance(value, str):
        return value
    plain = isinstance(value, list) and all(
        isinstance(message, dict)
        and message.keys() == {"role", "content"}
        and message["role"] in ROLES
        and isinstance(message["content"], str)
        for message in value
    )
    if not plain:
        raise PydanticCustomError(
            "negative",
            "Input should be a text or a list of messages with a role ({roles}) and a content of text",
            {"roles": ", ".join(ROLES)},
        )
    return tuple(value)
