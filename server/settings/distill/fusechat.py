"""The shape of a file for `tutti distill fusechat`, and from such a file to a distillation.

What the fields mean stands with the settings themselves, in `fusion.distill.fusechat.settings`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from alignment.methods.registry import METHODS
from fusion.distill.folders import Method as MergeMethod
from fusion.distill.fusechat import settings as fusechat
from server.settings.derive import section
from server.settings.distill.parts import EvaluateSection, Model
from server.settings.document import Path as Loc
from server.settings.document import parse
from server.settings.fields import Folder, Section, ServedName
from server.settings.read import read_text, validated


class DataSection(section(fusechat.Data, Section, without=["files"])):  # type: ignore[misc]
    """Texts; `files` start in the folder of the file."""

    files: Annotated[list[str], Field(min_length=1)]


class RepresentSection(section(fusechat.Represent, Section)):  # type: ignore[misc]
    """The part of each distribution that is kept."""


class AlignSection(section(fusechat.Align, Section, without=["map"])):  # type: ignore[misc]
    """The way to the base's tokens, by a map of any method there is."""

    map: Literal[tuple(METHODS)] = fusechat.Align().map  # type: ignore[valid-type]


class TargetSection(Section):
    """A model to train."""

    teachers: Annotated[list[str], Field(min_length=1)]
    combine: fusechat.Combine = "best"


class TrainSection(section(fusechat.Train, Section)):  # type: ignore[misc]
    """The training loop."""


class MergeSection(section(fusechat.Merge, Section, without=["compare"])):  # type: ignore[misc]
    """The merge of the targets; `compare` lists methods to merge by as well."""

    compare: list[MergeMethod] = Field(default_factory=list)


class FuseChatFile(Section):
    """The whole file."""

    name: ServedName
    base: Model
    sources: Annotated[dict[ServedName, Model], Field(min_length=1)]
    targets: dict[ServedName, TargetSection] = Field(default_factory=dict)
    data: DataSection
    represent: RepresentSection = RepresentSection()
    align: AlignSection = AlignSection()
    train: TrainSection = TrainSection()
    merge: MergeSection = MergeSection()
    evaluate: EvaluateSection | None = None
    work: Folder
    out: Folder
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


def read_fusechat(path: Path) -> tuple[fusechat.FuseChat, EvaluateSection | None]:
    """The distillation that a file describes, and what is evaluated at the end. Paths start in its folder.

    Raises:
        ConfigError: one line per problem, each with its place, the field, what was found and what is allowed.
    """
    file = validated(parse(read_text(path), str(path)), FuseChatFile, path.parent, _contradictions)
    folder = path.parent.absolute()
    return _distillation(file, folder), file.evaluate.below(folder) if file.evaluate else None


def _distillation(file: FuseChatFile, folder: Path) -> fusechat.FuseChat:
    targets = file.targets or {name: TargetSection(teachers=[name]) for name in file.sources}
    data = file.data.model_dump() | {"files": tuple(folder / name for name in file.data.files)}
    merge = file.merge.model_dump() | {"compare": tuple(file.merge.compare)}
    return fusechat.FuseChat(
        name=file.name,
        base=fusechat.Source(**file.base.model_dump()),
        sources={name: fusechat.Source(**model.model_dump()) for name, model in file.sources.items()},
        targets={name: fusechat.Target(tuple(one.teachers), one.combine) for name, one in targets.items()},
        data=fusechat.Data(**data),
        represent=fusechat.Represent(**file.represent.model_dump()),
        align=fusechat.Align(**file.align.model_dump()),
        train=fusechat.Train(**file.train.model_dump()),
        merge=fusechat.Merge(**merge),
        work=Path(file.work),
        out=Path(file.out),
        dtype=file.dtype,
    )


def _contradictions(file: FuseChatFile) -> Iterator[tuple[Loc, str]]:
    """What each field allows but all together do not."""
    known = [*file.sources, fusechat.BASE]
    if fusechat.BASE in file.sources:
        yield ("sources", fusechat.BASE), "the name is taken by the base; choose another"
    for name, target in file.targets.items():
        if name in (fusechat.BASE, "start"):
            yield ("targets", name), "the name is taken by the base; choose another"
        for number, teacher in enumerate(target.teachers):
            if teacher not in known:
                yield (
                    ("targets", name, "teachers", number),
                    f"there is no source '{teacher}'; allowed: {', '.join(known)}",
                )
        if len(set(target.teachers)) < len(target.teachers):
            yield ("targets", name, "teachers"), "a teacher is listed twice; list each once"
        if target.combine == "mean" and file.align.method != "projected":
            yield ("targets", name, "combine"), "mean is for align.method projected; take best, or that method"
        if target.combine == "best" and fusechat.BASE in target.teachers:
            yield ("targets", name, "teachers"), "the base takes part in best anyway; leave it out"
    if file.align.rest and file.align.temperature != 1:
        yield ("align", "rest"), "what is left out is known at temperature 1 only; set rest: false"
    if Path(file.out) == Path(file.work):
        yield ("out",), "found the same folder as work; name another"
    evaluated = file.evaluate
    if evaluated is not None and evaluated.pivot is not None and evaluated.pivot not in known:
        yield ("evaluate", "pivot"), f"there is no model '{evaluated.pivot}'; allowed: {', '.join(known)}"
