"""Registry of engines, and loading one from plain values in the process that runs it."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from fusion.members import transformers, vllm
from fusion.members.engine import Engine

ENGINES = {"transformers": transformers.KIND, "vllm": vllm.KIND}


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Specification of an engine to load. Only JSON values, so that it can be sent to another process or machine.

    Attributes:
        engine: a key of `ENGINES`, or the `module:function` that returns an `Engine`.
        arguments: the loader's keyword arguments.
    """

    engine: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def load_engine(spec: EngineSpec) -> Engine:
    """The engine, with weights and cache in place.

    Raises:
        ConfigError: one sentence, for whatever keeps the checkpoint from being served.
    """
    kind = ENGINES.get(spec.engine)
    load = pkgutil.resolve_name(kind.load if kind else spec.engine)
    return cast(Engine, load(**spec.arguments))
