"""The shape of a file for `tutti distill fusechat`, and from such a file to a distillation.

What the fields mean stands with the settings themselves, in `fusion.distill.fusechat.settings` and
`fusion.distill.training.settings`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from alignment.methods.registry import METHODS
from fusion.distill.fusechat import settings as fusechat
from fusion.distill.training import settings as training
from server.settings.derive import made, section
from server.settings.distill.parts import DistillFile, EvaluateSection, read_distill
from server.settings.document import Loc
from server.settings.fields import Folder, Section, ServedName


class DataSection(section(training.Data, Section, without=["files"])):  # type: ignore[misc]
    """Texts; `files` start in the folder of the file."""

    files: Annotated[list[Folder], Field(min_length=1)]


class RepresentSection(section(fusechat.Represent, Section)):  # type: ignore[misc]
    """The part of each distribution that is kept."""


class AlignSection(section(fusechat.Align, Section, without=["map"])):  # type: ignore[misc]
    """The way to the base's tokens, by a map of any method there is."""

    map: Literal[tuple(METHODS)] = fusechat.Align().map  # type: ignore[valid-type]


class TargetSection(section(fusechat.Target, Section, without=["teachers"])):  # type: ignore[misc]
    """A model to train."""

    teachers: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]


class TrainSection(section(training.Train, Section)):  # type: ignore[misc]
    """The training loop."""


class MergeSection(section(fusechat.Merge, Section)):  # type: ignore[misc]
    """The merge of the targets; `compare` lists methods to merge by as well."""


class FuseChatFile(DistillFile):
    """The whole file."""

    targets: dict[ServedName, TargetSection] = Field(default_factory=dict)
    data: DataSection
    represent: RepresentSection = RepresentSection()
    align: AlignSection = AlignSection()
    train: TrainSection = TrainSection()
    merge: MergeSection = MergeSection()

    def needed(self) -> Iterator[tuple[str, str]]:
        """The paths that a run reads or goes on from, by field."""
        yield from super().needed()
        yield from (("data.files", path) for path in self.data.files)

    def contradictions(self) -> Iterator[tuple[Loc, str]]:
        """What each field allows but all together do not."""
        yield from super().contradictions()
        known = [*self.sources, training.BASE]
        if training.BASE in self.sources:
            yield ("sources", training.BASE), "the name is taken by the base; choose another"
        for name, target in self.targets.items():
            if name in (training.BASE, "start"):
                yield ("targets", name), "the name is taken by the base; choose another"
            for number, teacher in enumerate(target.teachers):
                if teacher not in known:
                    yield (
                        ("targets", name, "teachers", number),
                        f"there is no source '{teacher}'; allowed: {', '.join(known)}",
                    )
            if len(set(target.teachers)) < len(target.teachers):
                yield ("targets", name, "teachers"), "a teacher is listed twice; list each once"
            if target.combine == "mean" and self.align.method != "projected":
                yield ("targets", name, "combine"), "mean is for align.method projected; take best, or that method"
            if target.combine == "best" and training.BASE in target.teachers:
                yield ("targets", name, "teachers"), "the base takes part in best anyway; leave it out"
        if self.align.rest and self.align.temperature != 1:
            yield ("align", "rest"), "what is left out is known at temperature 1 only; set rest: false"


def read_fusechat(path: Path) -> tuple[fusechat.FuseChat, EvaluateSection | None]:
    """The distillation that a file describes, and what is evaluated at the end. Raises as `read_distill`."""
    file = read_distill(path, FuseChatFile)
    targets = file.targets or {name: TargetSection(teachers=(name,)) for name in file.sources}
    return made(fusechat.FuseChat, file.model_copy(update={"targets": targets})), file.evaluate
