"""A calibration from end to end: members alone, the search, and the choice on untouched questions."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress, TaskID

from alignment.errors import ConfigError
from fusion.assembly.runtime import Runtime
from fusion.assembly.views import with_views
from fusion.calibrate.asking import AT_A_TIME, Form, Reply, ask, choose
from fusion.calibrate.candidates import (
    AS_CONFIGURED,
    UNIFORM,
    Candidate,
    other_weights,
    sums_worth_trying,
    with_learned,
    worth_trying,
)
from fusion.calibrate.halving import OutOfTime, Standing, planned, search
from fusion.calibrate.shortfall import shortfall
from fusion.calibrate.verdict import Result, Verdict, disagreement, verdict, vote, warnings
from fusion.learned.weights import LearnedWeights
from fusion.options import AUTO
from server.commands.calibrate.answers import Answers, about
from server.commands.calibrate.learning import Learned, Learner
from server.commands.evaluate.questions import Question
from server.commands.evaluate.scoring import said, score
from server.settings import EnsembleSettings, Settings
from server.settings.ensembles import AlignmentSettings
from server.settings.sums import NAMES as SUMS

VOTE = "vote of the members"
ORACLE = "oracle that knows the task"


@dataclass
class Outcome:
    """Everything that was learned, however far it went.

    Attributes:
        members, voting, chosen: on the untouched questions; empty or None where it did not come to that.
        standings: the candidates on the development share, best first.
        disagreement: the share of questions that members answer differently.
        warnings: sentences.
        verdict: None where nothing could be compared.
        candidate: the chosen one.
        tasks: mean scores, 0 to 100, by result's name and task.
        learned: the weights that were learned, where that was asked for.
        compared: other ways of weighting on the untouched questions.
        oracle: for each task what was best on its development questions.
        failures: by candidate, how many questions got no answer, by the reason.
    """

    members: list[Result] = field(default_factory=list)
    voting: Result | None = None
    chosen: Result | None = None
    standings: list[Standing[Candidate]] = field(default_factory=list)
    disagreement: float = 0.0
    warnings: list[str] = field(default_factory=list)
    verdict: Verdict | None = None
    candidate: Candidate | None = None
    tasks: dict[str, dict[str, float]] = field(default_factory=dict)
    learned: Learned | None = None
    compared: list[Result] = field(default_factory=list)
    oracle: Result | None = None
    failures: dict[str, Counter[str]] = field(default_factory=dict)


def variants(settings: Settings, name: str, alignments: Sequence[str], *, learn: bool) -> Settings:
    """The settings with an ensemble of each member, and one for every pivot and alignment, in place of their own.

    To `learn` weights takes one whose pivot the prompt decides on as well.
    """
    given = settings.ensembles[name]
    made: dict[str, EnsembleSettings] = {AS_CONFIGURED: given}
    for member in given.members:
        views = {member: given.views[member]} if member in given.views else {}
        made[by_itself(member).name] = EnsembleSettings(members=(member,), views=views, pivot=member)
    plain: dict[str, Any] = {"maps": {}, "weights": None, "combine": "mixture", **dict.fromkeys(SUMS)}
    for pivot in (*given.members, AUTO) if learn else given.members:
        for method in alignments:
            changed = {"pivot": pivot, "alignment": AlignmentSettings(method=method), **plain}
            made[ensemble_name(pivot, method)] = given.model_copy(update=changed)
    models = {name: settings.models[name] for name in map(given.model_of, given.members)}
    server = settings.server.model_copy(update={"serve_models": False, "aliases": {}})
    return settings.model_copy(update={"models": models, "ensembles": made, "server": server})


def by_itself(member: str) -> Candidate:
    """A member by itself."""
    return Candidate((member,), member)


def ensemble_name(pivot: str, method: str) -> str:
    """The name that a variant is built under."""
    return f"{pivot} {method}"


class Calibration:
    """One run of the command."""

    def __init__(
        self,
        runtime: Runtime,
        settings: EnsembleSettings,
        questions: tuple[list[Question], list[Question]],
        form: Form,
        answers: Answers,
        *,
        alignments: Sequence[str],
        seconds: float,
        likelihood: bool,
        progress: Progress,
        learner: Learner | None,
    ) -> None:
        self._runtime, self._settings, self._form, self._answers = runtime, settings, form, answers
        self._development, self._untouched = questions
        self._likelihood, self._progress = likelihood, progress
        self._deadline = self._end = time.monotonic() + seconds
        self._began = time.monotonic()
        self._members = [by_itself(name) for name in settings.members]
        method = settings.alignment.method
        own = Candidate(tuple(settings.members), settings.pivot, method, settings.combine, AS_CONFIGURED)
        self._own, self._alignment, self._learner = own, alignments[0], learner
        self._learned: LearnedWeights | None = None
        self._alone: list[tuple[float, ...]] = []  # the members' scores on the development share
        self._candidates = self._worth_trying(alignments)
        self._bar: TaskID = progress.add_task("members alone", total=self._planned())
        self._perplexity: defaultdict[str, list[float]] = defaultdict(list)

    def _worth_trying(self, alignments: Sequence[str]) -> list[Candidate]:
        settings, own = self._settings, self._own
        pivot = settings.pivot if settings.pivot in settings.members else settings.members[0]
        if self._learner is not None:
            return with_learned(settings.members, alignments[0], "mixture", own)
        if settings.fusion.sums:
            uniform = Candidate(own.members, pivot, alignments[0])
            return sums_worth_trying(settings.fusion, own, uniform)
        one_model = len({settings.model_of(member) for member in settings.members}) == 1
        tried = (alignments[:1], [pivot]) if one_model else (alignments, settings.members)  # nothing to align
        return [own, *(one for one in worth_trying(own.members, *tried) if not self._is_own(one))]

    def _is_own(self, one: Candidate) -> bool:
        """Whether a candidate is the configuration of the file by another name."""
        own, defaults = self._own, self._runtime.ensembles[AS_CONFIGURED].defaults
        plain = self._settings.alignment == AlignmentSettings(method=one.alignment) and not self._settings.maps
        same = (one.members, one.pivot) == (own.members, own.pivot)
        return same and plain and one.fusion(defaults) == own.fusion(defaults)

    def _planned(self) -> int:
        development, untouched = len(self._development), len(self._untouched)
        alone = len(self._members) * (development + untouched)
        return alone + planned(len(self._candidates), development) + untouched

    def run(self) -> Outcome:
        """All of it; what time did not allow is missing from the outcome."""
        outcome = Outcome()
        try:
            if self._learner is not None:
                self._learn(
                    self._learner, outcome, [self._replies(one, self._development) for one in self._members]
                )
            alone = {one: self._replies(one, self._development + self._untouched) for one in self._members}
        except OutOfTime:
            return outcome
        first = len(self._development)
        untouched = {one: replies[first:] for one, replies in alone.items()}
        # An ensemble takes about as long as its members together; half as much again for what that leaves out.
        spent = sum(reply.seconds for replies in untouched.values() for reply in replies)
        # Half of what is left goes to the search whatever that is, so that every run gets further.
        self._deadline = max(self._end - 1.5 * spent, (time.monotonic() + self._end) / 2)
        outcome.members = [self._result(one.name, replies) for one, replies in untouched.items()]
        self._note_tasks(outcome, outcome.members)
        self._alone = [_scores(self._development, replies[:first]) for replies in alone.values()]
        by_rank = [int(index) for index in np.argsort([-np.mean(own) for own in self._alone], kind="stable")]
        outcome.voting = self._vote(list(untouched.values()), by_rank)
        self._note_tasks(outcome, [outcome.voting])
        texts = [[replies[i].text for replies in untouched.values()] for i in range(len(self._untouched))]
        counted = [[said(q, text) for text in each] for q, each in zip(self._untouched, texts, strict=True)]
        outcome.disagreement = disagreement(counted)
        self._progress.update(self._bar, description="search")
        outcome.standings = search(self._candidates, first, self._standing)
        known = {name: float(np.exp(np.mean(np.log(values)))) for name, values in self._perplexity.items()}
        outcome.warnings = warnings(outcome.members, known)
        if not outcome.standings:
            return outcome
        outcome.candidate = outcome.standings[0].candidate
        self._deadline = self._end
        self._progress.update(self._bar, description="untouched questions")
        try:
            replies = self._replies(outcome.candidate, self._untouched)
        except OutOfTime:
            return outcome
        outcome.chosen = self._result(outcome.candidate.name, replies)
        self._note_tasks(outcome, [outcome.chosen])
        if outcome.learned is not None:
            self._compare(outcome, {one.pivot: replies[:first] for one, replies in alone.items()})
        outcome.verdict = verdict(outcome.members, outcome.voting, outcome.chosen, best=by_rank[0])
        self._progress.update(self._bar, completed=self._planned())
        return outcome

    def _learn(self, learner: Learner, outcome: Outcome, alone: Sequence[Sequence[Reply]]) -> None:
        """Fit weights to the development share, and let them take part in the search."""
        self._progress.update(self._bar, description="references")
        half = (self._began + self._end) / 2
        answers = [[reply.text for reply in each] for each in zip(*alone, strict=True)]
        ensemble = self._runtime.ensembles[ensemble_name(AUTO, self._alignment)]
        outcome.learned = learner.learn(
            self._runtime.fuser, ensemble, self._development, answers, self._form, lambda: time.monotonic() < half
        )
        self._learned = outcome.learned.fit.weights
        unlike = [q for q in self._untouched if learner.is_unlike(self._learned, q, self._form)]
        outcome.learned.unlike = len(unlike)
        about = self._learned.about
        self._candidates = with_learned(self._settings.members, self._alignment, about.combine, self._own)
        self._progress.update(self._bar, description="members alone")

    def _compare(self, outcome: Outcome, alone: Mapping[str, Sequence[Reply]]) -> None:
        """Ask the untouched questions by the other ways of weighting, as far as time goes.

        `alone` are the members' replies on the development share, which the oracle chooses by.
        """
        assert outcome.learned is not None
        assert outcome.candidate is not None
        standings = {standing.candidate: standing for standing in outcome.standings}
        equal = [one for one in standings if one.weights == UNIFORM]
        learned = [one for one in standings if one.weights == "learned"]
        if not equal or not learned:
            return
        others = [learned[0], equal[0], *other_weights(equal[0], outcome.learned.fit.weights.about.offsets)]
        try:
            for candidate in others:
                if candidate != outcome.candidate:
                    self._progress.update(self._bar, description=candidate.name)
                    result = self._result(candidate.name, self._replies(candidate, self._untouched))
                    outcome.compared.append(result)
                    self._note_tasks(outcome, [result])
        except OutOfTime:
            pass
        known = {result.name: result for result in (*outcome.members, *outcome.compared, outcome.chosen) if result}
        by_development = {f"{name} alone": _scores(self._development, one) for name, one in alone.items()}
        by_development |= {one.name: standings[one].scores for one in (learned[0], equal[0]) if one.name in known}
        outcome.oracle = self._oracle(by_development, known)
        self._note_tasks(outcome, [outcome.oracle])

    def _oracle(self, development: Mapping[str, Sequence[float]], known: Mapping[str, Result]) -> Result:
        """For each task what answered its development questions best, on the untouched ones."""
        tasks: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for name, scores in development.items():
            for question, value in zip(self._development, scores, strict=False):
                tasks[question.task][name].append(value)
        best = {
            task: max(by_name, key=lambda name: float(np.mean(by_name[name]))) for task, by_name in tasks.items()
        }
        usual = max(known, key=lambda name: float(np.mean(known[name].scores)))
        taken = [known[best.get(question.task, usual)] for question in self._untouched]
        scores = tuple(result.scores[index] for index, result in enumerate(taken))
        share = 1 / max(1, len(self._untouched))
        tokens = round(sum(result.tokens * share for result in taken))
        passes, seconds = (sum(getattr(one, what) * share for one in taken) for what in ("passes", "seconds"))
        return Result(ORACLE, scores, tokens, passes, seconds)

    def _standing(self, candidate: Candidate, size: int) -> Standing[Candidate]:
        questions = self._development[:size]
        replies = self._replies(candidate, questions)
        for reply in replies:
            for name, value in reply.perplexity.items():
                if value > 0:
                    self._perplexity[name].append(value)
        scores = _scores(questions, replies)
        passes, tokens = sum(reply.passes for reply in replies), sum(reply.tokens for reply in replies)
        cost = passes / len(replies) if tokens else float("inf")
        alone, tasks = [own[:size] for own in self._alone], [question.task for question in questions]
        return Standing(candidate, scores, cost, *shortfall(scores, alone, tasks))

    def _replies(self, candidate: Candidate, questions: Sequence[Question]) -> list[Reply]:
        """Replies in the order of the questions, those that are kept included; OutOfTime once the time is over."""
        name = candidate.name
        if candidate.weights == "learned" and self._learned is not None:
            name = f"{name} {self._learned.digest}"
        elif candidate.offsets:
            name = f"{name} {about(candidate.offsets)}"
        missing = [q for q in questions if self._answers.get(name, key(q)) is None]
        self._progress.advance(self._bar, 0)
        for start in range(0, len(missing), AT_A_TIME):  # kept together; in between the time is looked at
            if time.monotonic() >= self._deadline:
                raise OutOfTime
            some = missing[start : start + AT_A_TIME]
            replies = self._ask(candidate, some)
            self._answers.put(name, {key(q): r for q, r in zip(some, replies, strict=True)})
            self._progress.advance(self._bar, len(some))
        found = [self._answers.get(name, key(question)) for question in questions]
        return [reply for reply in found if reply is not None]

    def _ask(self, candidate: Candidate, questions: Sequence[Question]) -> list[Reply]:
        name = candidate.name if candidate.alone else ensemble_name(candidate.pivot, candidate.alignment)
        if candidate.weights == AS_CONFIGURED:
            name = AS_CONFIGURED
        ensemble = self._runtime.ensembles[name]
        if candidate.weights == "learned":
            ensemble = replace(ensemble, learned=self._learned)
        ensemble, fusion = with_views(ensemble, candidate.fusion(ensemble.defaults))
        fuser = self._runtime.fuser
        if not self._likelihood:
            return ask(fuser, ensemble, fusion, [question.prompt for question in questions], self._form)
        replies = []
        for question in questions:
            if not question.texts:
                replies += ask(fuser, ensemble, fusion, [question.prompt], self._form)
                continue
            reply = choose(fuser, ensemble, fusion, question.prompt, question.texts, self._form)
            letter = dict(zip(question.texts, question.choices, strict=True)).get(reply.text, "")
            replies.append(Reply(letter, reply.tokens, reply.passes, reply.seconds, {}, reply.error))
        return replies

    def _vote(self, replies: Sequence[Sequence[Reply]], by_rank: Sequence[int]) -> Result:
        scores, tokens, seconds = [], 0, 0.0
        for question, each in zip(self._untouched, zip(*replies, strict=True), strict=True):
            winner = vote([said(question, reply.text) for reply in each], by_rank)
            scores.append(score(question, each[winner].text))
            tokens += sum(reply.tokens for reply in each)
            seconds += sum(reply.seconds for reply in each)
        return Result(VOTE, tuple(scores), tokens, float(tokens), seconds)

    def _result(self, name: str, replies: Sequence[Reply]) -> Result:
        scores = _scores(self._untouched, replies)
        tokens, passes = sum(reply.tokens for reply in replies), sum(reply.passes for reply in replies)
        return Result(name, scores, tokens, passes, sum(reply.seconds for reply in replies))

    def _note_tasks(self, outcome: Outcome, results: Sequence[Result]) -> None:
        for result in results:
            by_task = defaultdict(list)
            for question, value in zip(self._untouched, result.scores, strict=True):
                by_task[question.task].append(100 * value)
            outcome.tasks[result.name] = {task: float(np.mean(values)) for task, values in by_task.items()}


def _scores(questions: Sequence[Question], replies: Sequence[Reply]) -> tuple[float, ...]:
    return tuple(score(q, reply.text) for q, reply in zip(questions, replies, strict=True))


def key(question: Question) -> str:
    """What the replies to a question are kept under; references and ways of comparing change no reply."""
    asked = json.dumps([question.prompt, question.choices, question.texts])
    return f"{question.task}/{question.id}/{hashlib.sha256(asked.encode()).hexdigest()[:12]}"


def require_questions(questions: Sequence[Question]) -> None:
    """ConfigError where there is nothing to divide, or two questions of a task have one id."""
    if len(questions) < 2:
        raise ConfigError(
            "One question cannot be divided into some to choose on and some to judge by: give at least 40 of the "
            "kind that will be asked."
        )
    names = Counter(f"{question.task}/{question.id}" for question in questions)
    if double := next((name for name, times in names.items() if times > 1), None):
        raise ConfigError(f"Two questions are called {double}: give every question of a task an id of its own.")


def write(path: Path, content: str | bytes) -> None:
    """Write a file of the report; ConfigError where that fails."""
    try:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror or error}): give another --out.") from None
