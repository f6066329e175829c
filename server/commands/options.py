"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration, a YAML file.")]
ApiKey = Annotated[
    str | None, typer.Option(envvar="TUTTI_API_KEY", help="Bearer key, where the server asks for one.")
]
MaxTokens = Annotated[int, typer.Option(min=1, help="The longest answer.")]
