"""Answers that are kept, so that a calibration that was broken off goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from alignment.errors import ConfigError
from fusion.calibrate.asking import Reply

FILE = "answers.jsonl"


class Answers:
    """Replies by candidate and question, in a file of JSON lines; a line that was cut off is left out.

    Failures are not written: the next run asks again.
    """

    def __init__(self, folder: Path, about: str) -> None:
        """Read what is there; ConfigError where it is about something else, or cannot be written."""
        self._path = folder / FILE
        self._known: dict[tuple[str, str], Reply] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lines = self._path.read_text(encoding="utf-8").split("\n") if self._path.exists() else []
            if not lines:
                self._path.write_text(json.dumps({"about": about}) + "\n", encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(f"The folder {folder} cannot be used ({error}): give another --out.") from None
        for number, line in enumerate(lines):
            try:
                row = json.loads(line)
                if number == 0:
                    found = row["about"]
                    if found != about:
                        raise ConfigError(
                            f"{self._path} holds answers of other models or by other options: "
                            "give another --out, or delete it to begin again."
                        )
                    continue
                asked = (row.pop("candidate"), row.pop("question"))
                self._known[asked] = Reply(**row)
            except (ValueError, KeyError, TypeError):
                if number == 0:
                    raise ConfigError(f"{self._path} is no file of answers: give another --out.") from None

    def __len__(self) -> int:
        return len(self._known)

    def get(self, candidate: str, question: str) -> Reply | None:
        """The reply that is kept, if any."""
        return self._known.get((candidate, question))

    def put(self, candidate: str, replies: dict[str, Reply]) -> None:
        """Keep replies by question. ConfigError where the file cannot be written."""
        self._known.update({(candidate, question): reply for question, reply in replies.items()})
        rows = [
            {"candidate": candidate, "question": question, **asdict(reply)}
            for question, reply in replies.items()
            if reply.error is None
        ]
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        except OSError as error:
            why = error.strerror or error
            raise ConfigError(f"{self._path} cannot be written ({why}): give another --out.") from None

    def failures(self) -> dict[str, Counter[str]]:
        """By candidate, how many questions got no answer, by the reason."""
        found: dict[str, Counter[str]] = {}
        for (candidate, _), reply in self._known.items():
            if reply.error is not None:
                found.setdefault(candidate, Counter())[reply.error] += 1
        return found


def about(*parts: object) -> str:
    """A digest of everything that answers depend on besides candidate and question; the parts as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
