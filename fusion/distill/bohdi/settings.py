"""Settings of a Bohdi run, each declared once with default, bounds and meaning, as in `training.settings`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

from fusion.distill.training.settings import Count, Source, Train

Draws = Literal["bandit", "fixed"]
JudgeBy = Literal["source", "ensemble", "fused"]
Temperature = Annotated[float, Interval(ge=0, le=2)]

TARGET = "target"
"""The name of the model that learns, among those that answer."""

JUDGES = "judges"
"""The name of the ensemble that judges."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The tree of domains and its bandit.

    Attributes:
        levels: of the tree below its root; questions are asked about leaves.
        window: outcomes that a test needs; None tests nothing (no introspection).
        threshold: a node is reset where its test's p-value is below.
    """

    levels: Annotated[int, Interval(ge=1, le=8)] = 3
    window: Count | None = 20
    threshold: Annotated[float, Interval(ge=0, le=1)] = 0.2


@dataclass(frozen=True, slots=True)
class Explore:
    """Exploration of a round: which domains, how many questions, how they are written and answered.

    Attributes:
        draws: "bandit" draws domains by Thompson sampling and grows the tree; "fixed" gives all domains of the
            file equal shares, level by level.
        questions: to draw in a round, those included that come to nothing.
        batch: drawn together, before any of their outcomes counts; their sequences are generated together.
        proposals: samples of each leader for the name of a new domain.
        agree: how often a name has to be proposed before it joins the tree.
        barren: batches in a row without a usable question that end a round's exploration.
        temperature: of names and questions.
        answer_temperature: of answers.
        top_p: of all of them.
        max_question: longest question in tokens of the leader.
        max_answer: longest answer in tokens of the model that answers.
        seed: of everything that is drawn.
    """

    draws: Draws = "bandit"
    questions: Annotated[int, Ge(0)] = 1000
    batch: Annotated[int, Interval(ge=1, le=4096)] = 64
    proposals: Annotated[int, Interval(ge=1, le=100)] = 5
    agree: Count = 1
    barren: Count = 3
    temperature: Temperature = 1.0
    answer_temperature: Temperature = 0.0
    top_p: Annotated[float, Gt(0), Interval(le=1)] = 1.0
    max_question: Count = 256
    max_answer: Count = 512
    seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0


@dataclass(frozen=True, slots=True)
class Rules:
    """What is not learned from; see `rules`.

    Attributes:
        shortest: question or answer, in characters.
        repeats: share of a text's words that may be repetitions of the three words before them.
        exclude: files of questions, as for `tutti eval`, none of which is ever asked.
    """

    shortest: Count = 1
    repeats: Annotated[float, Interval(ge=0, le=1)] = 0.3
    exclude: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Judge:
    """Who decides between answers.

    Attributes:
        by: "source": a source is shown the answers and names the best in JSON; "ensemble": all sources as one are
            asked the same; "fused": the answer to which those give the highest probability.
        source: the name of the judging source; None takes the leader of the question.
        members: of the ensemble, names of sources or "target"; none for all sources.
        pivot: of the ensemble; None for its first member.
        alignment: of the ensemble, a key of `alignment.methods.registry.METHODS`.
    """

    by: JudgeBy = "source"
    source: str | None = None
    members: tuple[str, ...] = ()
    pivot: str | None = None
    alignment: str = "exact"


@dataclass(frozen=True, slots=True)
class Prompts:
    """What leaders and judges are asked. `{parent}` and `{path}` are names joined by ", "; see `wording`."""

    domain: str = "Name one broad domain of knowledge or skill, in one to three words."
    subdomain: str = "Name one domain within {parent}, in one to three words."
    question: str = (
        "Write one question that tests knowledge of {path}. It must make sense by itself and have one best answer."
    )
    judge: str = "Question: {question}\n\n{answers}\n\nWhich of these answers is the best? Reply with its number."


@dataclass(frozen=True, slots=True)
class Learn:
    """What a round's training takes of all that was gathered so far.

    Attributes:
        samples: how many; None for as many as the round gathered, or as all have where it gathered none.
        even: share of them for which all domains are as likely, level by level. The bandit draws the others; it
            leaves what the target can do, which may then be forgotten.
    """

    samples: Count | None = None
    even: Annotated[float, Interval(ge=0, le=1)] = 0.0


@dataclass(frozen=True, slots=True)
class Bohdi:
    """A run.

    Attributes:
        name: of the result.
        base: the checkpoint that learns.
        sources: by name, those that answer as well.
        leaders: by name, further checkpoints that name domains and write questions in the place of the sources.
        domains: paths that the tree holds from the start, their parents included.
        rounds: of exploration and learning.
        work: folder of the run, `out` of the result.
        dtype: of the result's weights.
    """

    name: str
    base: Source
    sources: dict[str, Source]
    work: Path
    out: Path
    leaders: dict[str, Source] = field(default_factory=dict)
    domains: tuple[tuple[str, ...], ...] = ()
    rounds: Annotated[int, Ge(0)] = 3
    tree: Tree = field(default_factory=Tree)
    explore: Explore = field(default_factory=Explore)
    rules: Rules = field(default_factory=Rules)
    judge: Judge = field(default_factory=Judge)
    prompts: Prompts = field(default_factory=Prompts)
    learn: Learn = field(default_factory=Learn)
    train: Train = field(default_factory=lambda: Train(lm_weight=1.0))
    max_length: Annotated[int, Ge(2)] = 2048
    dtype: str = "float32"

    @property
    def asking(self) -> dict[str, Source]:
        """Those that name domains and write questions."""
        return self.leaders or self.sources
