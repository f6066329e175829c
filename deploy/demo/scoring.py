"""How an answer is scored: exact match for every task, chrF beside it where the answer is prose."""

import re
from collections.abc import Sequence

from sacrebleu.metrics import CHRF

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
PROSE = frozenset({"data_to_text", "translation", "commonsense"})


def is_exact(task: str, answer: str, reference: str) -> bool:
    """Arithmetic: the same last number. Everything else: the same text, whitespace aside."""
    if task == "arithmetic":
        return NUMBER.findall(answer)[-1:] == NUMBER.findall(reference)[-1:]
    return answer.split() == reference.split()


def exact_match(task: str, answers: Sequence[str], references: Sequence[str]) -> float:
    """Share of exact answers, in percent."""
    exact = [is_exact(task, answer, reference) for answer, reference in zip(answers, references, strict=True)]
    return 100 * sum(exact) / len(exact)


def chrf(answers: Sequence[str], references: Sequence[str]) -> float:
    """chrF of the corpus, 0 to 100."""
    return float(CHRF().corpus_score(list(answers), [list(references)]).score)
