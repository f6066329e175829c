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
from fusion.distill.fusechat.settings import BASE, Source, Train
from server.settings.derive import section
from server.settings.distill.parts import EvaluateSection, Model
from server.settings.document import Path as Loc
from server.settings.document import parse
from server.settings.fields import Folder, Section, ServedName
from server.settings.read import read_text, validated

Name = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_NAME, strip_whitespace=True)]


class TreeSection(section(bohdi.Tree, Section)):  # type: ignore[misc]
    """The tree of domains and its bandit."""


class ExploreSection(section(bohdi.Explore, Section)):  # type: ignore[misc]
    """Exploration of a round."""


class RulesSection(section(bohdi.Rules, Section, without=["exclude"])):  # type: ignore[misc]
    """What is not learned from; files of `exclude` start in the folder of the file."""

    exclude: list[str] = Field(default_factory=list)


class JudgeSection(section(bohdi.Judge, Section, without=["members", "alignment"])):  # type: ignore[misc]
    """Who decides between answers."""

    members: list[str] = Field(default_factory=list)
    alignment: Literal[tuple(METHODS)] = bohdi.Judge().alignment  # type: ignore[valid-type]


class PromptsSection(section(bohdi.Prompts, Section)):  # type: ignore[misc]
    """What leaders and judges are asked."""


class LearnSection(section(bohdi.Learn, Section)):  # type: ignore[misc]
    """What a round's training takes."""


class TrainingSection(section(Train, Section, without=["loss", "lm_weight", "patience"])):  # type: ignore[misc]
    """The training loop of plain fine-tuning on the answers."""


class BohdiFile(Section):
    """The whole file."""

    name: ServedName
    base: Model
    sources: Annotated[dict[ServedName, Model], Field(min_length=1)]
    leaders: dict[ServedName, Model] = Field(default_factory=dict)
    domains: list[Annotated[list[Name], Field(min_length=1)]] = Field(default_factory=list)
    rounds: Annotated[int, Field(ge=0)] = 3
    tree: TreeSection = TreeSection()
    explore: ExploreSection = ExploreSection()
    rules: RulesSection = RulesSection()
    judge: JudgeSection = JudgeSection()
    prompts: PromptsSection = PromptsSection()
    learn: LearnSection = LearnSection()
    train: TrainingSection = TrainingSection()
    max_length: Annotated[int, Field(ge=2)] = 2048
    evaluate: EvaluateSection | None = None
    work: Folder
    out: Folder
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


def read_bohdi(path: Path) -> tuple[bohdi.Bohdi, EvaluateSection | None]:
    """The run that a file describes, and what is evaluated at the end. Paths start in its folder.

    Raises:
        ConfigError: one line per problem, each with its place, the field, what was found and what is allowed.
    """
    file = validated(parse(read_text(path), str(path)), BohdiFile, path.parent, _contradictions)
    folder = path.parent.absolute()
    return _run(file, folder), file.evaluate.below(folder) if file.evaluate else None


def _run(file: BohdiFile, folder: Path) -> bohdi.Bohdi:
    rules = file.rules.model_dump() | {"exclude": tuple(folder / name for name in file.rules.exclude)}
    judge = file.judge.model_dump() | {"members": tuple(file.judge.members)}
    return bohdi.Bohdi(
        name=file.name,
        base=Source(**file.base.model_dump()),
        sources={name: Source(**model.model_dump()) for name, model in file.sources.items()},
        leaders={name: Source(**model.model_dump()) for name, model in file.leaders.items()},
        domains=tuple(tuple(path) for path in file.domains),
        rounds=file.rounds,
        tree=bohdi.Tree(**file.tree.model_dump()),
        explore=bohdi.Explore(**file.explore.model_dump()),
        rules=bohdi.Rules(**rules),
        judge=bohdi.Judge(**judge),
        prompts=bohdi.Prompts(**file.prompts.model_dump()),
        learn=bohdi.Learn(**file.learn.model_dump()),
        train=Train(**file.train.model_dump(), lm_weight=1.0, patience=None),
        max_length=file.max_length,
        work=Path(file.work),
        out=Path(file.out),
        dtype=file.dtype,
    )


def _contradictions(file: BohdiFile) -> Iterator[tuple[Loc, str]]:
    """What each field allows but all together do not."""
    taken = (bohdi.TARGET, BASE, "start")
    for part, names in (("sources", file.sources), ("leaders", file.leaders)):
        for name in names:
            if name in taken:
                yield (part, name), "the name is taken by the target; choose another"
            elif part == "leaders" and name in file.sources:
                yield (part, name), "a source has that name; choose another"
    for number, path in enumerate(file.domains):
        if len(path) > file.tree.levels:
            yield ("domains", number), f"has {len(path)} names, but the tree {file.tree.levels} levels"
    whole = [path for path in file.domains if len(path) == file.tree.levels]
    if file.explore.draws == "fixed" and not whole:
        yield ("domains",), f"lists no path of {file.tree.levels} names, which draws: fixed needs"
    known = [bohdi.TARGET, *file.sources]
    judge = file.judge
    if judge.source is not None and judge.source not in [*file.sources, *file.leaders]:
        allowed = ", ".join([*file.sources, *file.leaders])
        yield ("judge", "source"), f"there is no source '{judge.source}'; allowed: {allowed}"
    for number, name in enumerate(judge.members):
        if name not in known:
            yield ("judge", "members", number), f"there is no model '{name}'; allowed: {', '.join(known)}"
    if len(set(judge.members)) < len(judge.members):
        yield ("judge", "members"), "a member is listed twice; list each once"
    members = judge.members or list(file.sources)
    if judge.pivot is not None and judge.pivot not in members:
        yield ("judge", "pivot"), f"'{judge.pivot}' is no member; allowed: {', '.join(members)}"
    for field in fields(bohdi.Prompts):
        assert field.name in FIELDS
        if sentence := misfit(field.name, getattr(file.prompts, field.name)):
            yield ("prompts", field.name), sentence
    if Path(file.out) == Path(file.work):
        yield ("out",), "found the same folder as work; name another"
    if file.evaluate is not None and file.evaluate.pivot not in (None, BASE, *file.sources):
        allowed = ", ".join([BASE, *file.sources])
        yield ("evaluate", "pivot"), f"there is no model '{file.evaluate.pivot}'; allowed: {allowed}"
