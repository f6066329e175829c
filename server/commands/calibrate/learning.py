"""Learning: weights from the development share of the questions, and what the report says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from alignment.errors import ConfigError
from fusion.calibrate.asking import AT_A_TIME, Form
from fusion.calibrate.fitting import Fit, fit
from fusion.calibrate.references import Question as WithReference
from fusion.calibrate.references import Scored, score_references
from fusion.ensemble import Ensemble
from fusion.learned.weights import UNIFORM, Fingerprint, LearnedWeights
from fusion.loop.fuser import Fuser
from server.commands.evaluate.questions import Question
from server.commands.evaluate.scoring import score

FILE = "learned.safetensors"
ROUNDING = 0.01  # of a weight
UNWRITTEN = "there is no reference that a member would write, and no member is right."
_RIGHT = 0.5  # the score from which on an answer counts as right


@dataclass
class Learned:
    """Weights that were learned from questions.

    Attributes:
        fit: the weights, and what else was tried.
        scored: the questions whose references the members predicted.
        failed: how many questions could not be scored, by the reason.
        unlike: of the untouched questions, how many resemble none of those.
    """

    fit: Fit
    scored: list[Scored]
    failed: Counter[str]
    unlike: int = 0

    def by_task(self) -> dict[str, dict[str, float]]:
        """The mean weights of the members by task, of questions that these weights were not fitted on."""
        tasks: dict[str, list[int]] = {}
        for index, one in enumerate(self.scored):
            tasks.setdefault(one.question.task, []).append(index)
        return {
            task: dict(
                zip(self.fit.weights.members, self.fit.of_questions[rows].mean(axis=0).tolist(), strict=True)
            )
            for task, rows in tasks.items()
        }

    def sentences(self, untouched: int) -> list[str]:
        """What the fit found, and what it could not do."""
        found = [f"Learned weights: {note}" for note in self.fit.weights.about.notes]
        for reason, times in self.failed.most_common(3):
            found.append(f"{times} references could not be scored: {reason}")
        if self.unlike and self.fit.weights.about.kind != UNIFORM:
            found.append(
                f"{self.unlike} of {untouched} untouched questions resemble none that the weights were fitted on: "
                "they get equal weights."
            )
        return found

    def numbers(self) -> dict[str, object]:
        """For the file of numbers."""
        about = self.fit.weights.about
        gains = {one.spec.kind: float(np.mean(one.held_out)) for one in self.fit.tried}
        return {
            "kind": about.kind,
            "combine": about.combine,
            "temperature": about.temperature,
            "digest": about.digest,
            "held_out_nats": gains,
            "weights": self.by_task(),
            "offsets": about.offsets,
            "failed": dict(self.failed),
            "unlike": self.unlike,
        }


class Learner:
    """What learns weights for members of these `fingerprints`, and keeps them in the file at `path`."""

    def __init__(self, fingerprints: Mapping[str, Fingerprint], path: Path) -> None:
        self._fingerprints = fingerprints
        self._path = path

    def learn(
        self,
        fuser: Fuser,
        ensemble: Ensemble,
        questions: Sequence[Question],
        answers: Sequence[Sequence[str]],
        form: Form,
        goes_on: Callable[[], bool],
    ) -> Learned:
        """Have the members predict the references, and fit weights to that, as far as `goes_on` allows.

        Args:
            answers: by question, what the members answer alone.
            goes_on: whether there is time.

        Raises:
            ConfigError: the file cannot be written.
        """
        scored: list[Scored] = []
        failed: Counter[str] = Counter()
        references = dict(zip(questions, with_references(questions, answers), strict=True))
        for start in range(0, len(questions), AT_A_TIME):
            if not goes_on():
                failed["the time allowed was over."] += len(questions) - start
                break
            some = [references[question] for question in questions[start : start + AT_A_TIME]]
            read, reasons = score_references(fuser, ensemble, [one for one in some if one is not None], form)
            scored += read
            failed.update([*reasons, *[UNWRITTEN] * some.count(None)])
        return Learned(self._kept(fit(scored, ensemble, self._fingerprints), scored), scored, failed)

    def _kept(self, found: Fit, scored: Sequence[Scored]) -> Fit:
        """The fit with the weights of an earlier run in place of its own where they differ by rounding alone.

        What members predict differs in the last digits from run to run, by which texts share a pass. Answers are
        kept by the digest of the weights, and would be asked for again.
        """
        try:
            before = LearnedWeights.load(self._path)
        except ConfigError:
            before = None
        if before is not None and _about_the_same(before, found.weights, scored):
            return replace(found, weights=before)
        try:
            found.weights.save(self._path)
        except OSError as error:
            why = error.strerror or error
            raise ConfigError(f"{self._path} cannot be written ({why}): give another --out.") from None
        return found

    def is_unlike(self, learned: LearnedWeights, question: Question, form: Form) -> bool:
        """Return whether a question resembles none that the weights were fitted on."""
        text = form.text(question.prompt)
        similarity = learned.weigh(text, learned.members).similarity
        return similarity is not None and similarity < learned.about.similar


def _about_the_same(one: LearnedWeights, other: LearnedWeights, scored: Sequence[Scored]) -> bool:
    """Whether two models are of one kind, and give every question the same weights within `ROUNDING`."""
    mine, its = (replace(model.about, offsets={}, temperature=1.0, notes=()) for model in (one, other))
    if mine != its:
        return False
    pairs = (
        [model.weigh(question.text, other.members, question.losses).weights for model in (one, other)]
        for question in scored
    )
    return all(np.abs(np.subtract(*pair)).max() < ROUNDING for pair in pairs)


def with_references(questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> list[WithReference | None]:
    """The questions with the right answers that the members are to predict, None where there is none.

    A number or a letter is not what a member writes that works it out, so where answers are matched a member's own
    right answer counts, as it was written: of several the one by the member that is right most often in the task.
    Where none is right a text to match is what it should be, and where texts are only likened it always is: the
    first reference.
    """
    right = [[score(q, text) for text in each] for q, each in zip(questions, answers, strict=True)]
    by_task: dict[str, list[list[float]]] = {}
    for question, scores in zip(questions, right, strict=True):
        by_task.setdefault(question.task, []).append(scores)
    often = {task: np.mean(rows, axis=0) for task, rows in by_task.items()}
    found: list[WithReference | None] = []
    for question, each, scores in zip(questions, answers, right, strict=True):
        text = next((one for one in question.references if one.strip()), None) if question.is_text else None
        if question.metric == "match" or not question.is_text:
            texts = [index for index, value in enumerate(scores) if value >= _RIGHT and each[index].strip()]
            best = max(texts, key=lambda index: float(often[question.task][index]), default=None)
            text = text if best is None else each[best]
        found.append(None if text is None else WithReference(question.prompt, text, question.task))
    return found
