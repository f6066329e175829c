"""Judging: which of several answers to a question is the best.

Equal answers are one. They are shown in a drawn order and without names, so that no model's place helps it; the
published code shows the target's answer first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fusion.distill.bohdi import wording
from fusion.distill.bohdi.settings import TARGET, JudgeBy, Prompts
from fusion.distill.bohdi.voices import Request, Voices
from fusion.options import SamplingParams

VERDICT_TOKENS = 32


@dataclass(frozen=True)
class Case:
    """Answers to one question.

    Attributes:
        question: as it was asked.
        answers: texts by the names of who gave them; at least one where the case is complete.
        judge: the name of the model that decides; ignored for fused log-probabilities.
        complete: False where the target or all sources could not answer, so that nothing is to be decided.
    """

    question: str
    answers: Mapping[str, str]
    judge: str
    complete: bool = True


@dataclass(frozen=True)
class Verdict:
    """A decision.

    Attributes:
        answer: the best one; None where nothing was decided.
        winners: the names of those who gave it.
        shown: the different answers in the order in which they were judged.
        scores: of these, log-probabilities in nats where there are any.
    """

    answer: str | None
    winners: tuple[str, ...]
    shown: tuple[str, ...]
    scores: tuple[float | None, ...] = field(default=())

    @property
    def reward(self) -> int | None:
        """1 where a source was better than the target, 0 where the target was as good; None for no decision."""
        return None if self.answer is None else int(TARGET not in self.winners)


def judge(
    cases: Sequence[Case],
    by: JudgeBy,
    prompts: Prompts,
    voices: Voices,
    rng: np.random.Generator,
) -> list[Verdict]:
    """Decide all complete cases, those together that have more than one answer."""
    shown = [_shuffled(case, rng) if case.complete else () for case in cases]
    open_ones = [number for number, answers in enumerate(shown) if len(answers) > 1]
    choices: dict[int, int | None] = {}
    scores: dict[int, tuple[float | None, ...]] = {}
    if by == "fused":
        pairs = [(cases[number].question, answer) for number in open_ones for answer in shown[number]]
        values = iter(voices.log_probabilities(pairs))
        for number in open_ones:
            scores[number] = tuple(next(values) for _ in shown[number])
            choices[number] = _highest(scores[number])
    else:
        requests = [_request(cases[number], shown[number], prompts) for number in open_ones]
        for number, reply in zip(open_ones, voices.ask(requests), strict=True):
            best: Any = wording.field_of(reply.text, "best") if reply.error is None else None
            choices[number] = best - 1 if type(best) is int and 1 <= best <= len(shown[number]) else None
    return [
        _verdict(case, shown[number], choices.get(number, 0 if case.complete else None), scores.get(number, ()))
        for number, case in enumerate(cases)
    ]


def _shuffled(case: Case, rng: np.random.Generator) -> tuple[str, ...]:
    different = sorted(set(case.answers.values()))
    return tuple(different[place] for place in rng.permutation(len(different)))


def _request(case: Case, shown: Sequence[str], prompts: Prompts) -> Request:
    sampling = SamplingParams(max_tokens=VERDICT_TOKENS, temperature=0.0)
    prompt = wording.judging(prompts, case.question, shown)
    return Request(case.judge, prompt, sampling, wording.best_of(len(shown)))


def _highest(scores: Sequence[float | None]) -> int | None:
    known = [-math.inf if score is None or math.isnan(score) else score for score in scores]
    return int(np.argmax(known)) if max(known) > -math.inf else None


def _verdict(case: Case, shown: tuple[str, ...], choice: int | None, scores: tuple[float | None, ...]) -> Verdict:
    answer = None if choice is None else shown[choice]
    winners = tuple(name for name, given in case.answers.items() if given == answer)
    return Verdict(answer, winners, shown, scores)
