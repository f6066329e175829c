"""State of a run: the tree and what was gathered, as the events of its journal make it.

Nothing else is remembered, so that a run that is taken up again and one that is only looked at see the same.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fusion.distill.bohdi.journal import Event
from fusion.distill.bohdi.rules import same
from fusion.distill.bohdi.settings import Tree
from fusion.distill.bohdi.tree import Domain, KnowledgeTree


@dataclass(frozen=True, slots=True)
class Sample:
    """A question with the answer that won."""

    id: str
    round: int
    path: Domain
    question: str
    answer: str


@dataclass
class State:
    """Where a run stands.

    Attributes:
        tree: with all outcomes so far.
        samples: that can be learned from, by id, in the order of gathering.
        asked: questions so far, in the form of `rules.same`.
        drawn: by round, leaves of the tree and how many questions were drawn for each, unusable ones included.
        lost: by round, descents that came to no leaf.
        batches: by round, how many are over.
        barren: batches in a row, the last ones, without a usable question.
        silent: models that answered nothing in the last batch, and why.
        explored: by round whose exploration is over, why it ended early, None where it did not.
        introspected: by round, the paths that were reset.
        lessons: by round, the ids of the samples that are learned from.
        trained: by round, the samples and the steps of the training that is over.
        dropped: reasons, and how many questions each took.
        undecided: how many questions had no verdict: the judge gave none, or models that should answer failed.
        rewards: the questions by reward: 1 where a source won, 0 where the target did.
    """

    tree: KnowledgeTree
    samples: dict[str, Sample] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    drawn: defaultdict[int, Counter[Domain]] = field(default_factory=lambda: defaultdict(Counter))
    lost: Counter[int] = field(default_factory=Counter)
    batches: Counter[int] = field(default_factory=Counter)
    barren: int = 0
    silent: dict[str, str] = field(default_factory=dict)
    explored: dict[int, str | None] = field(default_factory=dict)
    introspected: dict[int, list[Domain]] = field(default_factory=dict)
    lessons: dict[int, list[str]] = field(default_factory=dict)
    trained: dict[int, tuple[int, int]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    undecided: int = 0
    rewards: defaultdict[int, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))

    @classmethod
    def of(cls, settings: Tree, events: Iterable[Event]) -> State:
        """The state after these events."""
        tree = KnowledgeTree(levels=settings.levels, window_size=settings.window, threshold=settings.threshold)
        state = cls(tree)
        state.take(events)
        return state

    def questions(self, round: int) -> int:
        """Return how many questions were drawn in a round, those included that came to nothing."""
        return sum(self.drawn[round].values()) + self.lost[round]

    def by_first(self, round: int) -> Counter[str]:
        """How many questions were drawn below each domain of the first level."""
        found: Counter[str] = Counter()
        for path, number in self.drawn[round].items():
            found[path[0]] += number
        return found

    def take(self, events: Iterable[Event]) -> None:
        """Move on by some events."""
        for event in events:
            getattr(self, f"_{event['event']}", _nothing)(event)

    def _planted(self, event: Event) -> None:
        self.tree.add(tuple(event["path"]))

    def _grown(self, event: Event) -> None:
        self.tree.grow(tuple(event["parent"]), event["name"])

    def _sample(self, event: Event) -> None:
        path: Domain = tuple(event["path"])
        self.asked.add(same(event["question"]))
        self.drawn[event["round"]][path] += 1
        self.tree.update([(path, event["reward"])])
        if event["reward"] is None:
            self.undecided += 1
        else:
            self.rewards[event["round"]][event["reward"]] += 1
            sample = Sample(event["id"], event["round"], path, event["question"], event["answer"])
            self.samples[sample.id] = sample

    def _dropped(self, event: Event) -> None:
        self.dropped[event["why"]] += 1
        path = tuple(event["path"])
        if not path:
            self.lost[event["round"]] += 1
            return
        self.drawn[event["round"]][path] += 1
        self.tree.discourage(path)

    def _batch(self, event: Event) -> None:
        self.batches[event["round"]] += 1
        self.barren = 0 if event["usable"] else self.barren + 1
        self.silent = event["silent"]

    def _introspection(self, event: Event) -> None:
        self.introspected[event["round"]] = self.tree.introspect()

    def _explored(self, event: Event) -> None:
        self.explored[event["round"]] = event["why"]
        self.barren, self.silent = 0, {}

    def _lesson(self, event: Event) -> None:
        self.lessons[event["round"]] = event["ids"]

    def _trained(self, event: Event) -> None:
        self.trained[event["round"]] = event["samples"], event["steps"]


def _nothing(event: Any) -> None:
    """An event that changes nothing, such as the first of all."""
