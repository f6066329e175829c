"""Lineage: which models a distilled checkpoint comes from, as its folder's `distillation.json` has it."""

from __future__ import annotations

import json
from pathlib import Path

RECORD = "distillation.json"


def parents_of(source: str) -> tuple[str, ...]:
    """The names of base and sources, the base first; none for a checkpoint that is no result of a distillation.

    A record that cannot be read counts as none: a checkpoint is served whatever lies beside its weights.
    """
    try:
        record = json.loads(Path(source, RECORD).read_text(encoding="utf-8"))
        names = [record["base"]["name"], *record["sources"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str)))
