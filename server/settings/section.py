"""Pydantic configuration that all sections of the file share."""

from __future__ import annotations

from pydantic import ConfigDict

# Unknown fields are errors, and YAML's own types are taken at their word.
STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
