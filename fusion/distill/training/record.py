"""Record: the part of `distillation.json` that all methods have: models, settings, versions."""

from __future__ import annotations

import importlib.metadata
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol

from fusion.distill.training.settings import Source
from fusion.members.identity import content_digest

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy")
_APART = ("name", "base", "sources", "leaders", "data", "work", "out")  # models, data and paths


class Distillation(Protocol):
    """The settings of any way to distill: a dataclass with the models that take part."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """Of the result."""

    @property
    def base(self) -> Source:
        """The checkpoint that is trained."""

    @property
    def sources(self) -> dict[str, Source]:
        """What it learns from, by name."""


def basics(method: str, settings: Distillation, inputs: str) -> dict[str, Any]:
    """The part that the records of all methods have."""
    return {
        "method": method,
        "name": settings.name,
        "inputs": inputs,
        "base": about_model(settings.base),
        "sources": {name: about_model(one) for name, one in settings.sources.items()},
        "settings": {name: value for name, value in asdict(settings).items() if name not in _APART},
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }


def about_model(source: Source) -> dict[str, Any]:
    """A model by its last folder, and the digest of its files."""
    name = Path(source.source).name if Path(source.source).is_dir() else source.source
    digest = content_digest(source.source, revision=source.revision)
    return {"name": name, "revision": source.revision, "digest": digest}
