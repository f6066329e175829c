"""Wording: what leaders and judges are asked, the JSON that they answer in, and what is read from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from string import Formatter
from typing import Any

from fusion.distill.bohdi.rules import has_control_characters
from fusion.distill.bohdi.settings import Prompts
from fusion.distill.bohdi.tree import Domain

FIELDS = {
    "domain": frozenset[str](),
    "subdomain": frozenset({"parent"}),
    "question": frozenset({"path"}),
    "judge": frozenset({"question", "answers"}),
}
"""By prompt, the fields that it may have in braces."""

NEEDED = {"question": frozenset({"path"}), "judge": frozenset({"question", "answers"})}
"""By prompt, the fields that it must have."""

LONGEST_NAME = 40
"""Characters of a domain's name."""


def object_of(name: str, value: dict[str, Any]) -> dict[str, Any]:
    """The schema of a JSON object with one field."""
    return {"type": "object", "properties": {name: value}, "required": [name], "additionalProperties": False}


NAME = object_of("name", {"type": "string", "minLength": 1, "maxLength": LONGEST_NAME})
QUESTION = object_of("question", {"type": "string", "minLength": 1})


def best_of(count: int) -> dict[str, Any]:
    """The schema of a verdict on `count` answers, which are numbered from 1."""
    return object_of("best", {"enum": list(range(1, count + 1))})


def misfit(prompt: str, text: str) -> str | None:
    """Return what is wrong with the text of a prompt, a key of `FIELDS`; None where nothing is."""
    try:
        found = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    except ValueError as error:
        return f"cannot be read: {error}; write {{{{ and }}}} for braces"
    if unknown := found - FIELDS[prompt]:
        allowed = ", ".join(f"{{{name}}}" for name in sorted(FIELDS[prompt])) or "none"
        return f"holds {{{min(unknown)}}}; allowed: {allowed}"
    if missing := NEEDED.get(prompt, frozenset()) - found:
        return f"lacks {{{min(missing)}}}"
    return None


def naming(prompts: Prompts, parent: Domain) -> str:
    """The request for a domain below `parent`."""
    return prompts.subdomain.format(parent=", ".join(parent)) if parent else prompts.domain.format()


def asking(prompts: Prompts, path: Domain) -> str:
    """The request for a question about a leaf."""
    return prompts.question.format(path=", ".join(path))


def judging(prompts: Prompts, question: str, answers: Sequence[str]) -> str:
    """The request for a verdict on answers, in the order in which they are shown."""
    shown = "\n\n".join(f"Answer {number}: {answer}" for number, answer in enumerate(answers, 1))
    return prompts.judge.format(question=question, answers=shown)


def field_of(text: str, name: str) -> Any:
    """The field of a JSON object; None where the text is none or has no such field."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found.get(name) if isinstance(found, dict) else None


def name_of(text: str) -> str | None:
    """A domain's name as it goes into the tree; None where there is no usable one."""
    value = field_of(text, "name")
    name = " ".join(value.split()) if isinstance(value, str) else ""
    return name if 0 < len(name) <= LONGEST_NAME and not has_control_characters(name) else None
