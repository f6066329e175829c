"""Questions with reference answers, read from JSON lines."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignment.errors import ConfigError

Kind = Literal["number", "letter", "text"]

# A minus sign counts only where it cannot be a subtraction or a range: 7-3 and 3-4 hold no negative number.
NUMBER = re.compile(r"(?:(?<![\w).])[-−])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Question:
    """One row of a task file. `choices` are the letters of a multiple-choice question."""

    id: str
    task: str
    prompt: str
    references: tuple[str, ...]
    choices: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """What an answer has to give: `letter` with choices, `number` where every reference is one, else `text`.

        It follows from the row and not from the name of its task, so that any task file can be used.
        """
        if self.choices:
            return "letter"
        return "number" if all(_is_number(reference) for reference in self.references) else "text"


def read_questions(path: Path) -> list[Question]:
    """The rows of a JSON lines file.

    Raises:
        ConfigError: names the file and the line that is not a row with id, task, prompt and reference(s).
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a task file: {error}.") from None
    questions = [_question(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise ConfigError(f"{path}: holds no questions; give one JSON object per line.")
    return questions


def _question(line: str, where: str) -> Question:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}.") from None
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply for a question.") from None
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: should be an object with id, task, prompt and reference.")
    return question_of(row, where)


def question_of(row: dict[str, Any], where: str) -> Question:
    """The question that a row holds.

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
    return Question(row["id"], row["task"], row["prompt"], tuple(references), tuple(choices))


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _is_number(text: str) -> bool:
    return NUMBER.fullmatch(text.strip()) is not None
