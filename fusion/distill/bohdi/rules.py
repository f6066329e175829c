"""Rules: which questions and answers are not learned from, and why.

* cut off: the longest length came before the end;
* too short: fewer than `shortest` characters;
* degenerate: control characters, or more than `repeats` of the words repeat the three words before them;
* a duplicate: the same question, but for case and white space, was asked before;
* excluded: it is one of the questions that are kept for evaluating.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path

from alignment.errors import ConfigError
from fusion.distill.bohdi.settings import Rules

_CONTROL = ("Cc", "Cs", "Co", "Cn")
CUT_OFF = "cut off"
DUPLICATE = "a duplicate"
EXCLUDED = "excluded"


def fault(text: str, *, finished: bool, rules: Rules) -> str | None:
    """Return the reason why a text is not used, None where there is none."""
    if not finished:
        return CUT_OFF
    if len(text.strip()) < rules.shortest:
        return "too short"
    if has_control_characters(text):
        return "degenerate: control characters"
    if repetition(text) > rules.repeats:
        return "degenerate: repetitions"
    return None


def has_control_characters(text: str) -> bool:
    """Return whether a text holds what no text does: control characters other than tabs and line breaks, lone
    surrogates, characters of private use or without a meaning. Spaces and joiners of any script are text."""
    return any(unicodedata.category(character) in _CONTROL and character not in "\n\r\t" for character in text)


def repetition(text: str) -> float:
    """Return the share of a text's groups of three words that occurred in it before."""
    words = text.split()
    groups = [tuple(words[at : at + 3]) for at in range(len(words) - 2)]
    return 1 - len(set(groups)) / len(groups) if groups else 0.0


def same(text: str) -> str:
    """The form in which two questions are compared."""
    return " ".join(text.casefold().split())


def known(question: str, asked: Collection[str], excluded: Collection[str]) -> str | None:
    """Return why a question is not asked: it is among those asked or excluded, both in the form of `same`."""
    form = same(question)
    return EXCLUDED if form in excluded else DUPLICATE if form in asked else None


def read_excluded(files: Iterable[Path]) -> frozenset[str]:
    """The questions of files of JSON lines that have a `prompt`, in the form of `same`.

    Raises:
        ConfigError: one cannot be read, or a line has no prompt.
    """
    found = set()
    for path in files:
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read as JSON lines: {error}.") from None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                prompt = json.loads(line)["prompt"]
            except (ValueError, KeyError, TypeError, RecursionError):
                prompt = None
            if not isinstance(prompt, str):
                raise ConfigError(f"{path}:{number}: should be an object with a text 'prompt'.")
            found.add(same(prompt))
    return frozenset(found)
