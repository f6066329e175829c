"""What all parts of the file have in common."""

from __future__ import annotations

from pydantic import ConfigDict

# Unknown fields are errors, and YAML's own types are taken at their word.
STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
