"""Scores of answers: exact match, chrF, and the bootstrap interval of a mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from server.commands.evaluate.questions import NUMBER, Question, normalized

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with the ends of its 95% confidence interval."""

    mean: float
    low: float
    high: float


def is_right(question: Question, answer: str) -> bool:
    """Return whether an answer matches one of the references, by the question's way of matching.

    * `exact`: the same text, runs of white space made one space;
    * `normalized`: the same but for case, punctuation and articles (`questions.normalized`);
    * `contains`: a reference among the answer's words, both normalized;
    * `last_number`: the answer's last number is a reference's;
    * `choice`: the letter that the answer chooses is a reference.
    """
    match question.matching:
        case "last_number":
            given = last_number(answer)
            return given is not None and given in [last_number(reference) for reference in question.references]
        case "choice":
            return chosen_letter(answer, question.choices) in question.references
        case "normalized":
            return normalized(answer) in map(normalized, question.references)
        case "contains":
            words = f" {normalized(answer)} "
            return any(f" {normalized(reference)} " in words for reference in question.references)
        case "exact":
            return " ".join(answer.split()) in [" ".join(text.split()) for text in question.references]


def chrf(question: Question, answer: str) -> float | None:
    """Sentence-level chrF, 0 to 100, against the closest reference; None where the answer is no text."""
    if not question.is_text:
        return None
    from sacrebleu import sentence_chrf

    return float(sentence_chrf(answer, list(question.references)).score)


def last_number(text: str) -> Decimal | None:
    """The last number in a text; 1,234.50 counts as one, and equals 1234.5."""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("−", "-")) if found else None


def chosen_letter(answer: str, choices: Sequence[str]) -> str | None:
    """The letter that an answer begins with (`B`, `B.`, `(B) food`), or else the last one standing alone."""
    letters = "".join(re.escape(letter) for letter in choices)
    first = re.match(rf"\W*([{letters}])(?:[^\w\s]|\s*$)", answer)
    alone = re.findall(rf"\b([{letters}])\b", answer)
    return first.group(1) if first else alone[-1] if alone else None


def bootstrap(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of at least one value, and the 2.5% and 97.5% quantiles of the means of 2,000 resamples."""
    data = np.asarray(values, dtype=np.float64)
    mean = float(data.mean())
    if len(data) == 1:
        return Estimate(mean, mean, mean)
    from scipy import stats

    rng = np.random.default_rng(seed)
    ends = stats.bootstrap(
        (data,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=rng
    ).confidence_interval
    return Estimate(mean, float(ends.low), float(ends.high))
