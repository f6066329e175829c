"""Building an engine from plain values, so that any process on any machine can be told to do it."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from fusion.members.engine import Engine

# Where each engine's loader is. By name, so that an engine that is not used need not be installed.
ENGINES = {
    "transformers": "fusion.members.transformers.engine:TransformersEngine.load",
    "vllm": "fusion.members.vllm.engine:VllmEngine.load",
}


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What to load. Only values that JSON knows, so that it can cross to another process or machine.

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
    load = pkgutil.resolve_name(ENGINES.get(spec.engine, spec.engine))
    return cast(Engine, load(**spec.arguments))
