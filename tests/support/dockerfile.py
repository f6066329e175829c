"""The Dockerfile as data: stages of instructions, with build arguments filled in."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = REPOSITORY / "Dockerfile"


@dataclass(frozen=True)
class Stage:
    """What stands between one FROM and the next, in order."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [rest for word, rest in self.steps if word == instruction]

    def last(self, instruction: str) -> str:
        return self.all(instruction)[-1]

    def command(self, instruction: str) -> list[str]:
        """The words of an instruction in exec form."""
        rest = self.last(instruction)
        words: list[str] = json.loads(rest[rest.index("[") :])
        return words

    def variables(self, instruction: str) -> dict[str, str]:
        """What ENV or LABEL set."""
        text = " ".join(self.all(instruction))
        return {name: value.strip('"') for name, value in re.findall(r'([\w.]+)=("[^"]*"|\S*)', text)}


def stages(**given: str) -> dict[str, Stage]:
    """The stages by name; `given` are build arguments."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found: dict[str, Stage] = {}
    before_all: dict[str, str] = {}
    known = before_all
    for line in filter(None, map(str.strip, lines)):
        word, rest = line.split(maxsplit=1)
        rest = _filled(rest, before_all if word == "FROM" else known)
        if word == "FROM":
            base, name = rest.split(" AS ")
            stage = found[name] = Stage(name, base)
            known = {}
        elif word == "ARG":
            name, _, default = rest.partition("=")
            known[name] = given.get(name, default)
        else:
            stage.steps.append((word, rest))
    return found


def _filled(text: str, arguments: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda match: arguments.get(match[1], match[0]), text)
