"""Kinds of values in a configuration file: names, paths, devices, ways; and the base of its sections."""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationInfo
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A part of the file: unknown fields are errors, and YAML's own types are taken at their word."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _servable(name: str) -> str:
    """Return a name that can be used in a URL, a log line and, upper-cased, an environment variable."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", name):
        raise PydanticCustomError(
            "name", "allowed: up to 128 letters, digits and . _ : / - with a letter or digit first"
        )
    return name


ServedName = Annotated[str, AfterValidator(_servable)]


def _beside_the_file(source: str, info: ValidationInfo) -> str:
    """The absolute path of a file or folder that the configuration can see, any other `source` as it is."""
    assert info.context is not None, "validate with context={'folder': ...}"
    path = os.path.join(info.context["folder"], source)
    return os.path.abspath(path) if os.path.exists(path) else source


def _names_something(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise PydanticCustomError("empty", "should be a path or a name, not an empty text")
    return text


Source = Annotated[str, AfterValidator(_names_something), AfterValidator(_beside_the_file)]


def _folder(path: str, info: ValidationInfo) -> str:
    """The absolute path of a folder that may not exist yet."""
    assert info.context is not None, "validate with context={'folder': ...}"
    return os.path.abspath(os.path.join(info.context["folder"], os.path.expanduser(path)))


Folder = Annotated[str, AfterValidator(_names_something), AfterValidator(_folder)]


Device = Annotated[str, StringConstraints(pattern=r"^(cpu|mps|cuda(:\d{1,3})?)$")]
Match = Literal["exact", "normalized", "contains", "last_number", "choice"]
"""Ways to compare an answer with its references, see `server.commands.evaluate.scoring`."""
ToolFormat = Literal["hermes", "coder", "llama", "mistral", "args", "json"]
"""Ways to write tool calls, see `server.http.tools.formats`."""
