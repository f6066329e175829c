"""Configurations of one and two models, with the settings or the complaints that a text gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.errors import ConfigError
from server.settings import Settings, parse_settings

MINIMAL = "models: {ada: {source: models/ada}}"


PAIR = """\
models:
  ada: {source: models/ada}
  ben: {source: models/ben}
ensembles:
  both:
    members: [ada, ben]
    pivot: ada
"""


def parse(text: str, environ: dict[str, str] | None = None, folder: Path = Path("/nowhere")) -> Settings:
    return parse_settings(text, "c.yaml", folder, environ or {})


def problems(text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, environ)
    return str(caught.value).splitlines()
