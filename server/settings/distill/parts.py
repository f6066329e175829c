"""The parts that the files of all distillations have: models, folders, and the questions at the end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, PositiveInt

from alignment.methods.registry import METHODS
from fusion.distill.training.settings import BASE
from fusion.distill.training.settings import Source as Checkpoint
from fusion.members.registry import ENGINES
from server.settings.derive import section
from server.settings.document import Loc, parse
from server.settings.fields import Device, Folder, Section, ServedName, Source
from server.settings.read import read_text, validated

ENSEMBLE = "ensemble"
"""The name under which base and sources are asked together."""

_ASKED = re.compile(rf"start|{ENSEMBLE}|(target|merged|round)-.+")  # who is asked at the end beside the result


def _bare_source(model: Any) -> Any:
    return {"source": model} if isinstance(model, str) else model


class ModelSection(section(Checkpoint, Section, without=("source", "engine", "dtype", "device"))):  # type: ignore[misc]
    """A checkpoint; in the file a folder or hub id alone will do."""

    source: Source
    engine: Literal[tuple(ENGINES)] = "transformers"  # type: ignore[valid-type]
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Device = "cpu"


Model = Annotated[ModelSection, BeforeValidator(_bare_source)]


class EvaluateSection(Section):
    """The questions to ask the models at the end.

    Attributes:
        tasks: files of questions, as for `tutti eval`.
        limit: the most questions of each task.
        ensemble: ask the ensemble of base and sources as well, with the base as pivot.
        pivot: another pivot of that ensemble.
        alignment: of that ensemble.
    """

    tasks: Annotated[list[Folder], Field(min_length=1)]
    limit: PositiveInt | None = None
    ensemble: bool = True
    pivot: str | None = None
    alignment: Literal[tuple(METHODS)] = "exact"  # type: ignore[valid-type]


class DistillFile(Section):
    """What every such file holds. Paths start in its folder."""

    name: ServedName
    base: Model
    sources: Annotated[dict[ServedName, Model], Field(min_length=1)]
    evaluate: EvaluateSection | None = None
    work: Folder
    out: Folder
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def needed(self) -> Iterator[tuple[str, str]]:
        """The paths that a run reads or goes on from, by field."""
        yield "work", self.work
        yield "base", self.base.source
        yield from ((f"sources.{name}", one.source) for name, one in self.sources.items())
        if self.evaluate is not None:
            yield from (("evaluate.tasks", path) for path in self.evaluate.tasks)

    def contradictions(self) -> Iterator[tuple[Loc, str]]:
        """What each field allows but all together do not."""
        for name, path in self.needed():
            # A result replaces the one that was there, with all that lies in its folder.
            if Path(path).resolve().is_relative_to(Path(self.out).resolve()):
                yield ("out",), f"holds {name}, which would be lost; name another folder"
        taken = "the name is taken by what is asked at the end; choose another"
        if self.name == BASE or _ASKED.fullmatch(self.name):
            yield ("name",), taken
        for name in self.sources:
            if name == self.name or _ASKED.fullmatch(name):
                yield ("sources", name), taken
        known = [BASE, *self.sources]
        if self.evaluate is not None and self.evaluate.pivot not in (None, *known):
            pivot, allowed = self.evaluate.pivot, ", ".join(known)
            yield ("evaluate", "pivot"), f"there is no model '{pivot}'; allowed: {allowed}"


File = TypeVar("File", bound=DistillFile)


def read_distill(path: Path, shape: type[File]) -> File:
    """The content of a file.

    Raises:
        ConfigError: one line per problem, each with its place, the field, what was found and what is allowed.
    """
    return validated(parse(read_text(path), str(path)), shape, path.parent, shape.contradictions)
