"""Scores of answers: exact match, chrF, BLEU, F1."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Literal

from server.commands.evaluate.questions import NUMBER, Question, normalized


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
    return _sentence("chrf", question, answer)


def _sentence(metric: Literal["chrf", "bleu"], question: Question, answer: str) -> float:
    """sacrebleu's score of a sentence, 0 to 100."""
    import sacrebleu

    score = sacrebleu.sentence_chrf if metric == "chrf" else sacrebleu.sentence_bleu
    return float(score(answer, list(question.references)).score)


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


def said(question: Question, answer: str) -> str | None:
    """An answer as it counts in a vote: its number or letter, or its normalized text; None where there is none."""
    if question.matching == "last_number":
        number = last_number(answer)
        return None if number is None else str(number.normalize())
    if question.matching == "choice":
        return chosen_letter(answer, question.choices)
    return normalized(answer) or None


def score(question: Question, answer: str) -> float:
    """The score of an answer, 0 to 1, by the question's metric.

    `match` is 1 for what is right and else 0; `chrf` and `bleu` are sacrebleu's of the sentence, `f1` is of the
    words of the normalized texts, against the closest reference.
    """
    match question.metric:
        case "chrf" | "bleu" as metric:
            return _sentence(metric, question, answer) / 100
        case "f1":
            return max(word_f1(answer, reference) for reference in question.references)
        case "match":
            return float(is_right(question, answer))


def word_f1(answer: str, reference: str) -> float:
    """The harmonic mean of precision and recall of an answer's words, both normalized."""
    given, wanted = normalized(answer).split(), normalized(reference).split()
    if not given or not wanted:
        return float(given == wanted)
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted))
