"""Run: rounds of exploration and learning, each step from the journal that the steps before it wrote.

`work` holds `journal.jsonl` and `round-NN/model`. Whatever ends a run, the same settings resume it after the last
batch that is in the journal, or the last checkpoint of a training.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from alignment.errors import ConfigError
from fusion.distill.bohdi import card
from fusion.distill.bohdi.explore import explore
from fusion.distill.bohdi.journal import NAME, Journal
from fusion.distill.bohdi.learn import choose_lesson, train_round
from fusion.distill.bohdi.rules import read_excluded
from fusion.distill.bohdi.settings import TARGET, Bohdi
from fusion.distill.bohdi.state import State
from fusion.distill.bohdi.voices import Panel, open_voices
from fusion.distill.training.folders import publish
from fusion.distill.training.reading import read_as
from fusion.distill.training.settings import Source, StageProgress, digest_of


@dataclass
class Run:
    """A run under way.

    Attributes:
        settings: of all of it.
        progress: called by every step.
        notes: sentences on what did not go as it should, for whoever started the run.
    """

    settings: Bohdi
    progress: StageProgress = lambda what, done, total: None
    notes: list[str] = field(default_factory=list)

    @cached_property
    def journal(self) -> Journal:
        """The journal; begun where there is none.

        Raises:
            ConfigError: it was begun with other settings.
        """
        settings = self.settings
        journal = Journal(settings.work / NAME)
        inputs = self._inputs()
        begun = {event["event"] for event in journal.events} - {"begin", "planted"}
        if journal.events and not begun and journal.events[0]["inputs"] != inputs:
            journal.path.unlink()  # such as after a file that named a model that is not there
            journal = Journal(journal.path)
        if not journal.events:
            planted = [{"event": "planted", "path": list(path)} for path in _with_parents(settings.domains)]
            journal.add([{"event": "begin", "inputs": inputs, "tree": asdict(settings.tree)}, *planted])
        elif journal.events[0].get("inputs") != inputs:
            raise ConfigError(
                f"{settings.work} holds a run with other settings or models; name another folder as work, or "
                "remove this one. Only rounds may be added to it."
            )
        return journal

    @cached_property
    def state(self) -> State:
        """Where the run stands."""
        return State.of(self.settings.tree, self.journal.events)

    def run(self) -> Path:
        """Everything that is not done yet; returns the result's folder.

        Raises:
            ConfigError: there is nothing to do or nothing was gathered; what was gathered is kept.
        """
        settings = self.settings
        for name, number in (("rounds", settings.rounds), ("explore.questions", settings.explore.questions)):
            if number == 0:
                raise ConfigError(f"{name} is 0, so there is nothing to do; set it to at least 1.")
        student = settings.base
        for round in range(1, settings.rounds + 1):
            self._explore(round, student)
            self._learn(round, student)
            student = replace(settings.base, source=str(self.model_folder(round)), revision=None, dtype="float32")
        return self._publish()

    def model_folder(self, round: int) -> Path:
        """The folder of the model after a round."""
        return self._round_folder(round) / "model"

    def _round_folder(self, round: int) -> Path:
        return self.settings.work / f"round-{round:02d}"

    def _explore(self, round: int, student: Source) -> None:
        settings, state = self.settings, self.state
        if round in state.explored:
            return
        if round > 1 and settings.tree.window is not None and round not in state.introspected:
            self._note([{"event": "introspection", "round": round}])
        wanted = settings.explore.questions
        why = self._barren(round)
        with open_voices(self._models(student), self._panel()) as voices:
            while (done := state.questions(round)) < wanted and why is None:
                self.progress(f"round {round}: questions", done, wanted)
                count = min(settings.explore.batch, wanted - done)
                self._note(explore(round, count, state, settings, voices, self._excluded))
                why = self._barren(round)
        self.progress(f"round {round}: questions", state.questions(round), wanted)
        self._note([{"event": "explored", "round": round, "why": why}])
        if why is not None:
            self.notes.append(why)

    def _barren(self, round: int) -> str | None:
        """Why a round's exploration ends before its time; None where it goes on."""
        state, settings = self.state, self.settings
        silent = state.silent
        groups = ({TARGET}, settings.asking.keys(), settings.sources.keys())
        if any(group <= silent.keys() for group in groups):
            gone = "; ".join(f"{name}: {reason}" for name, reason in silent.items())
            return f"Exploration of round {round} ended early, as models do not answer any more ({gone})."
        if state.barren < settings.explore.barren:
            return None
        return (
            f"Exploration of round {round} ended early: no usable question in {state.barren} batches in a row, "
            f"mostly because: {self._most_frequent_reason()}."
        )

    def _learn(self, round: int, student: Source) -> None:
        settings, state = self.settings, self.state
        if round not in state.lessons:
            lesson = choose_lesson(round, state, settings)
            if not lesson:
                raise ConfigError(self._nothing_gathered(round))
            self._note([{"event": "lesson", "round": round, "ids": lesson}])
        samples = [state.samples[id] for id in state.lessons[round]]
        folder = self._round_folder(round)
        read, steps = train_round(
            round, student, samples, settings, folder, lambda a, b: self.progress(f"round {round}: training", a, b)
        )
        if round not in state.trained:
            self._note([{"event": "trained", "round": round, "samples": read, "steps": steps}])
        if read < len(samples):
            self.notes.append(
                f"Round {round} learned from {read} of {len(samples)} samples: the target cannot read the others "
                f"within {settings.max_length} tokens."
            )

    def _nothing_gathered(self, round: int) -> str:
        return (
            f"Round {round} has nothing to learn from: of {self.state.questions(round)} questions none had a "
            f"usable answer and a verdict, mostly because: {self._most_frequent_reason()}. "
            f"{self.settings.work / NAME} has all of it; change leaders, judge or prompts, and name another "
            "folder as work."
        )

    def _most_frequent_reason(self) -> str:
        """Why most questions came to nothing."""
        reasons = self.state.dropped + Counter({"no verdict": self.state.undecided})
        return reasons.most_common(1)[0][0] if reasons else "nothing was asked"

    def _publish(self) -> Path:
        settings = self.settings
        inputs = digest_of(self._inputs(), settings.rounds, settings.name, settings.dtype)

        def described() -> tuple[dict[str, Any], str]:
            record = card.record(settings, self.state, inputs)
            return record, card.model_card(settings, record)

        publish(self.model_folder(settings.rounds), settings.out, settings.dtype, inputs, described)
        return settings.out

    def _note(self, events: list[dict[str, object]]) -> None:
        """Events go to the journal first: what is not on the disk has not happened."""
        self.journal.add(events)
        self.state.take(events)

    def _models(self, student: Source) -> dict[str, Source]:
        return {TARGET: student, **self.settings.sources, **self.settings.leaders}

    def _panel(self) -> Panel | None:
        judge = self.settings.judge
        if judge.by == "source":
            return None
        members = judge.members or tuple(self.settings.sources)
        return Panel(members, judge.pivot or members[0], judge.alignment)

    def _inputs(self) -> str:
        """All that a journal depends on, wherever it lies; rounds may be added, and the result goes elsewhere."""
        settings = self.settings
        plain = replace(
            settings,
            base=self._content(settings.base),
            sources={},
            leaders={},
            rules=replace(settings.rules, exclude=()),
            rounds=0,
            work=Path(),
            out=Path(),
            name="",
            dtype="",
        )
        roles = [
            [(name, asdict(self._content(one))) for name, one in models.items()]
            for models in (settings.sources, settings.leaders)
        ]  # in order, by which models are drawn
        return digest_of(plain, roles, sorted(self._excluded))

    def _content(self, source: Source) -> Source:
        """A model by its files in the place of its folder."""
        return replace(source, source=read_as(source))

    @cached_property
    def _excluded(self) -> frozenset[str]:
        return read_excluded(self.settings.rules.exclude)


def _with_parents(paths: tuple[tuple[str, ...], ...]) -> list[tuple[str, ...]]:
    """All paths with those above them, parents first, each once."""
    return list(dict.fromkeys(path[:depth] for path in paths for depth in range(1, len(path) + 1)))
