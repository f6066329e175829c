"""Settings of FuseChat, each declared once with default, bounds and meaning.

Bounds are metadata, as in `fusion.options`: what reads a file derives its fields from these classes and checks
them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt, Interval

from fusion.distill.folders import Method as MergeMethod
from fusion.distill.sce import Variant
from fusion.distill.training.settings import BASE, Count, Data, Source, Train

Alignment = Literal["statistics", "statistics-nomatrix", "exact", "projected"]
Combine = Literal["best", "mean"]


@dataclass(frozen=True, slots=True)
class Represent:
    """The part of each distribution that is kept: the `best` tokens; `shard` conversations go to a file."""

    best: Annotated[int, Interval(ge=1, le=1000)] = 16
    shard: Count = 1024


@dataclass(frozen=True, slots=True)
class Align:
    """The way of a source's distributions to the base's positions and tokens.

    Attributes:
        method: the published ways (`token_alignment.transfer` describes them), or "projected": through a
            vocabulary map, at positions where the tokens of both models have spelled the same text.
        map: method of that map, a key of `alignment.methods.registry.METHODS`.
        temperature: of the targets.
        rest: give what the kept entries leave out to one entry of its own, instead of renormalising them as
            published; only at temperature 1, since nothing else is known of the rest.
    """

    method: Alignment = "statistics"
    map: str = "prefix"
    temperature: Annotated[float, Gt(0)] = 1.0
    rest: bool = True


@dataclass(frozen=True, slots=True)
class Target:
    """A model to train.

    Attributes:
        teachers: names of sources, or `BASE`.
        combine: "best" takes for every conversation the distributions of the model among base and teachers that
            predicts it best (MinCE); "mean" the mean of all teachers, which is what an ensemble of them answers
            (projected alignment only).
    """

    teachers: tuple[str, ...]
    combine: Combine = "best"


@dataclass(frozen=True, slots=True)
class Merge:
    """The merge of the targets, see `folders.merge_folders`; `compare` names methods to merge by as well."""

    method: MergeMethod = "sce"
    compare: tuple[MergeMethod, ...] = ()
    select: Annotated[float, Interval(ge=0, le=1)] = 1.0
    variant: Variant = "fusechat"


@dataclass(frozen=True, slots=True)
class FuseChat:
    """A distillation.

    Attributes:
        name: of the result, for its model card.
        base: the checkpoint that is trained; the pivot of all alignments.
        sources: by name, what it learns from.
        targets: by name; the result is merged from them.
        work: folder for what the stages hand on, `out` for the result.
        dtype: of the result's weights.
    """

    name: str
    base: Source
    sources: dict[str, Source]
    targets: dict[str, Target]
    data: Data
    work: Path
    out: Path
    represent: Represent = field(default_factory=Represent)
    align: Align = field(default_factory=Align)
    train: Train = field(default_factory=Train)
    merge: Merge = field(default_factory=Merge)
    dtype: str = "float32"

    @property
    def readers(self) -> dict[str, Source]:
        """Every model that reads the texts, the base first."""
        return {BASE: self.base, **self.sources}
