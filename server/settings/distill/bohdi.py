"""The shape of a file for `tutti distill bohdi`, and from such a file to a run.

What the fields mean stands with the settings themselves, in `fusion.distill.bohdi.settings`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from alignment.methods.registry import METHODS
from fusion.distill.bohdi import settings as bohdi
from fusion.distill.bohdi.wording import FIELDS, LONGEST_NAME, misfit
from fusion.distill.training.settings import BASE, Train
from server.settings.derive import made, section
from server.settings.distill.parts import DistillFile, EvaluateSection, Model, read_distill
from server.settings.document import Loc
from server.settings.fields import Folder, Section, ServedName

Name = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_NAME, strip_whitespace=True)]


class TreeSection(section(bohdi.Tree, Section)):  # type: ignore[misc]
    """The tree of domains and its bandit."""


class ExploreSection(section(bohdi.Explore, Section)):  # type: ignore[misc]
    """Exploration of a round."""


class RulesSection(section(bohdi.Rules, Section, without=["exclude"])):  # type: ignore[misc]
    """What is not learned from; files of `exclude` start in the folder of the file."""

    exclude: list[Folder] = Field(default_factory=list)


class JudgeSection(section(bohdi.Judge, Section, without=["alignment"])):  # type: ignore[misc]
    """Who decides between answers."""

    alignment: Literal[tuple(METHODS)] = bohdi.Judge().alignment  # type: ignore[valid-type]


class PromptsSection(section(bohdi.Prompts, Section)):  # type: ignore[misc]
    """What leaders and judges are asked."""


class LearnSection(section(bohdi.Learn, Section)):  # type: ignore[misc]
    """What a round's training takes."""


class TrainingSection(section(Train, Section, without=["loss", "lm_weight", "patience"])):  # type: ignore[misc]
    """The training loop of plain fine-tuning on the answers."""


class BohdiFile(DistillFile):
    """The whole file."""

    leaders: dict[ServedName, Model] = Field(default_factory=dict)
    domains: list[Annotated[tuple[Name, ...], Field(min_length=1, strict=False)]] = Field(default_factory=list)
    rounds: Annotated[int, Field(ge=0)] = 3
    tree: TreeSection = TreeSection()
    explore: ExploreSection = ExploreSection()
    rules: RulesSection = RulesSection()
    judge: JudgeSection = JudgeSection()
    prompts: PromptsSection = PromptsSection()
    learn: LearnSection = LearnSection()
    train: TrainingSection = TrainingSection()
    max_length: Annotated[int, Field(ge=2)] = 2048

    def needed(self) -> Iterator[tuple[str, str]]:
        """The paths that a run reads or goes on from, by field."""
        yield from super().needed()
        yield from ((f"leaders.{name}", one.source) for name, one in self.leaders.items())
        yield from (("rules.exclude", path) for path in self.rules.exclude)

    def contradictions(self) -> Iterator[tuple[Loc, str]]:
        """What each field allows but all together do not."""
        yield from super().contradictions()
        taken = {bohdi.TARGET: "the target", BASE: "the target", bohdi.JUDGES: "the judges"}
        for part, names in (("sources", self.sources), ("leaders", self.leaders)):
            for name in names:
                if name in taken:
                    yield (part, name), f"the name is taken by {taken[name]}; choose another"
                elif part == "leaders" and name in self.sources:
                    yield (part, name), "a source has that name; choose another"
        for number, path in enumerate(self.domains):
            if len(path) > self.tree.levels:
                yield ("domains", number), f"has {len(path)} names, but the tree {self.tree.levels} levels"
        whole = [path for path in self.domains if len(path) == self.tree.levels]
        if self.explore.draws == "fixed" and not whole:
            yield ("domains",), f"lists no path of {self.tree.levels} names, which draws: fixed needs"
        known = [bohdi.TARGET, *self.sources]
        judge = self.judge
        if judge.source is not None and judge.source not in [*self.sources, *self.leaders]:
            allowed = ", ".join([*self.sources, *self.leaders])
            yield ("judge", "source"), f"there is no source '{judge.source}'; allowed: {allowed}"
        for number, name in enumerate(judge.members):
            if name not in known:
                yield ("judge", "members", number), f"there is no model '{name}'; allowed: {', '.join(known)}"
        if len(set(judge.members)) < len(judge.members):
            yield ("judge", "members"), "a member is listed twice; list each once"
        members = judge.members or list(self.sources)
        if judge.pivot is not None and judge.pivot not in members:
            yield ("judge", "pivot"), f"'{judge.pivot}' is no member; allowed: {', '.join(members)}"
        for field in fields(bohdi.Prompts):
            assert field.name in FIELDS
            if sentence := misfit(field.name, getattr(self.prompts, field.name)):
                yield ("prompts", field.name), sentence


def read_bohdi(path: Path) -> tuple[bohdi.Bohdi, EvaluateSection | None]:
    """The run that a file describes, and what is evaluated at the end. Raises as `read_distill`."""
    file = read_distill(path, BohdiFile)
    train = made(Train, file.train, lm_weight=1.0, patience=None)
    return made(bohdi.Bohdi, file, train=train), file.evaluate
