"""The parts that the files of all distillations have: models, and the questions at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, StringConstraints

from alignment.methods.registry import METHODS
from fusion.members.registry import ENGINES
from server.settings.fields import Section, Source


def _bare_source(model: Any) -> Any:
    return {"source": model} if isinstance(model, str) else model


class ModelSection(Section):
    """A checkpoint; in the file a folder or hub id alone will do."""

    source: Source
    engine: Literal[tuple(ENGINES)] = "transformers"  # type: ignore[valid-type]
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Annotated[str, StringConstraints(pattern=r"^(cpu|mps|cuda(:\d{1,3})?)$")] = "cpu"
    revision: str | None = None
    cache_tokens: PositiveInt = 16384
    max_sequences: PositiveInt = 64
    prefill_chunk: PositiveInt = 1024


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

    tasks: Annotated[list[str], Field(min_length=1)]
    limit: PositiveInt | None = None
    ensemble: bool = True
    pivot: str | None = None
    alignment: Literal[tuple(METHODS)] = "exact"  # type: ignore[valid-type]

    def below(self, folder: Path) -> EvaluateSection:
        """The same with `tasks` that start in a folder."""
        return self.model_copy(update={"tasks": [str(folder / task) for task in self.tasks]})
