"""Questions with reference answers, read from JSON lines."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from alignment.errors import ConfigError
from server.settings.fields import Match

MATCHES: tuple[Match, ...] = get_args(Match)
Metric = Literal["match", "chrf", "bleu", "f1"]
METRICS: tuple[Metric, ...] = get_args(Metric)

# A minus sign counts only where it cannot be a subtraction or a range: 7-3 and 3-4 hold no negative number.
NUMBER = re.compile(r"(?:(?<![\w).])[-−])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")

ARTICLES = re.compile(r"\b(?:a|an|the)\b")


@dataclass(frozen=True, slots=True)
class Question:
    """One row of a task file.

    Attributes:
        choices: letters of a multiple-choice question.
        match: how an answer is compared with the references; None for what they ask for (`matching`).
        texts: of the choices, in their order.
        metric: what `tutti calibrate` counts as the score of an answer.
    """

    id: str
    task: str
    prompt: str
    references: tuple[str, ...]
    choices: tuple[str, ...] = ()
    match: Match | None = None
    texts: tuple[str, ...] = ()
    metric: Metric = "match"

    @property
    def matching(self) -> Match:
        """The way of matching: `match`, or `choice` with choices, `last_number` where every reference is one,
        else `exact`.

        It follows from the row and not from the name of its task, so that any task file can be used.
        """
        if self.match is not None:
            return self.match
        if self.choices:
            return "choice"
        return "last_number" if all(map(is_number, self.references)) else "exact"

    @property
    def is_text(self) -> bool:
        """Return whether an answer is a text, which chrF can compare with the references."""
        return self.matching in ("exact", "normalized", "contains") and not self.choices


def read_questions(path: Path, match: Match | None = None, metric: Metric = "match") -> list[Question]:
    """The rows of a JSON lines file; `match` and `metric` are for those that name none.

    Raises:
        ConfigError: names the file and the line that is not a row with id, task, prompt and reference(s).
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a task file: {error}.") from None
    rows = [(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    questions = [_question(line, where, match, metric) for where, line in rows]
    if not questions:
        raise ConfigError(f"{path}: holds no questions; give one JSON object per line.")
    return questions


def read_all(
    paths: Sequence[Path], limit: int | None = None, match: Match | None = None, metric: Metric = "match"
) -> list[Question]:
    """The questions of all files, of each task only the first `limit`; `match` and `metric` for rows without."""
    chosen, asked = [], Counter[str]()
    for question in (question for path in paths for question in read_questions(path, match, metric)):
        asked[question.task] += 1
        if limit is None or asked[question.task] <= limit:
            chosen.append(question)
    return chosen


def _question(line: str, where: str, match: Match | None, metric: Metric) -> Question:
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{where}: holds half of a surrogate pair, which is no character; write it whole."
        ) from None
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}.") from None
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply for a question.") from None
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: should be an object with id, task, prompt and reference.")
    return question_of(row, where, match, metric)


def question_of(row: dict[str, Any], where: str, match: Match | None = None, metric: Metric = "match") -> Question:
    """The question that a row holds; `match` and `metric` are for one that names none, `metric` without choices.

    Raises:
        ConfigError: says what is missing or wrong `where`.
    """
    references = row.get("references", [row["reference"]] if "reference" in row else [])
    texts = [row.get("id"), row.get("task"), row.get("prompt")]
    if not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{where}: 'id', 'task' and 'prompt' should all be there, as text.")
    if not _texts(references):
        raise ConfigError(f"{where}: needs a text as 'reference', or a list of texts as 'references'.")
    choices = row.get("choices", {})
    if not isinstance(choices, dict) or not all(len(letter) == 1 for letter in choices):
        raise ConfigError(f"{where}: 'choices' should be a mapping of letters to texts.")
    given = row.get("match")
    if given is not None and given not in MATCHES:
        raise ConfigError(f"{where}: 'match' should be one of {', '.join(MATCHES)}.")
    scored = row.get("metric", "match" if choices else metric)
    if scored not in METRICS:
        raise ConfigError(f"{where}: 'metric' should be one of {', '.join(METRICS)}.")
    question = Question(
        row["id"],
        row["task"],
        row["prompt"],
        tuple(references),
        tuple(choices),
        match if given is None else given,
        tuple(map(str, choices.values())),
        scored,
    )
    if problem := unmatchable(question):
        raise ConfigError(f"{where}: {problem}.")
    return question


def unmatchable(question: Question) -> str | None:
    """The reason why no answer to a question can match, as a part of a sentence; None where one can."""
    match question.match:
        case "last_number" if not all(map(is_number, question.references)):
            return "match last_number takes references that are numbers"
        case "choice" if not question.choices:
            return "match choice takes 'choices', a mapping of letters to texts"
        case "normalized" | "contains" if not all(map(normalized, question.references)):
            return f"match {question.match} takes references with letters or digits"
    return None


def normalized(text: str) -> str:
    """A text for comparing: NFKC, lower case, without punctuation and English articles, single spaces.

    Letters keep their marks; symbols such as % and + stay.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    spaced = "".join(" " if unicodedata.category(one).startswith("P") and one != "%" else one for one in folded)
    return " ".join(ARTICLES.sub(" ", spaced).split())


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def is_number(text: str) -> bool:
    """Return whether a text is one number and nothing else."""
    return NUMBER.fullmatch(text.strip()) is not None
