"""Learning: weights from the development share of the questions, and what the report says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusion.calibrate.asking import Form
from fusion.calibrate.fitting import Fit, fit
from fusion.calibrate.references import Question as WithReference
from fusion.calibrate.references import Scored, score_references
from fusion.ensemble import Ensemble
from fusion.learned.weights import UNIFORM, Fingerprint, LearnedWeights
from fusion.loop.fuser import Fuser
from server.commands.evaluate.questions import Question
from server.commands.evaluate.scoring import score

CHUNK = 32
FILE = "learned.safetensors"
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
            "offsets": about.usual,
            "failed": dict(self.failed),
            "unlike": self.unlike,
        }


class Learner:
    """What learns weights: `fingerprints` are those of the members that they are for."""

    def __init__(self, fingerprints: Mapping[str, Fingerprint]) -> None:
        self._fingerprints = fingerprints

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
        """
        scored: list[Scored] = []
        failed: Counter[str] = Counter()
        references = dict(zip(questions, with_references(questions, answers), strict=True))
        for start in range(0, len(questions), CHUNK):
            if not goes_on():
                failed["the time allowed was over."] += len(questions) - start
                break
            some = [references[question] for question in questions[start : start + CHUNK]]
            read, reasons = score_references(fuser, ensemble, [one for one in some if one is not None], form)
            scored += read
            failed.update([*reasons, *[UNWRITTEN] * some.count(None)])
        return Learned(fit(scored, ensemble, self._fingerprints), scored, failed)

    def is_unlike(self, learned: LearnedWeights, question: Question, form: Form) -> bool:
        """Return whether a question resembles none that the weights were fitted on."""
        text = form.text(question.prompt)
        similarity = learned.weigh(text, learned.members).similarity
        return similarity is not None and similarity < learned.about.similar


def with_references(questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> list[WithReference | None]:
    """The questions with the right answers that the members are to predict, None where there is none.

    That is the first reference where answers are compared as texts. A number or a letter is not what a member
    writes that works it out, so there its own right answer counts: of several the one by the member that is
    right most often in the task.
    """
    right = [[score(q, text) for text in each] for q, each in zip(questions, answers, strict=True)]
    by_task: dict[str, list[list[float]]] = {}
    for question, scores in zip(questions, right, strict=True):
        by_task.setdefault(question.task, []).append(scores)
    often = {task: np.mean(rows, axis=0) for task, rows in by_task.items()}
    found: list[WithReference | None] = []
    for question, each, scores in zip(questions, answers, right, strict=True):
        text = next((one for one in question.references if one.strip()), None)
        if not question.is_text:
            texts = [index for index, value in enumerate(scores) if value >= _RIGHT and each[index].strip()]
            best = max(texts, key=lambda index: float(often[question.task][index]), default=None)
            text = None if best is None else each[best]
        found.append(None if text is None else WithReference(question.prompt, text, question.task))
    return found
