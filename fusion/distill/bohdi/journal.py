"""Journal: everything that happens in a run, as JSON lines that are only ever added to.

What belongs together is added in one piece that a line `{"event": "commit"}` ends. A piece that was cut short, by
a killed process or a full disk, is cut off when the journal is opened: nothing was derived from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alignment.errors import ConfigError
from alignment.files import writing

Event = dict[str, Any]

NAME = "journal.jsonl"
COMMIT: Event = {"event": "commit"}


class Journal:
    """The journal of a run.

    Attributes:
        path: its file.
        events: all of them in order, commits left out.
    """

    def __init__(self, path: Path) -> None:
        """Open or begin a journal.

        Raises:
            ConfigError: the file holds something else, or cannot be read or written.
        """
        self.path = path
        self.events, whole = _read(path)
        if path.exists() and path.stat().st_size > whole:
            with writing(path), path.open("r+b") as file:
                file.truncate(whole)
                os.fsync(file.fileno())

    def add(self, events: Iterable[Event]) -> None:
        """Add events in one piece; they are on the disk when this returns.

        Raises:
            ConfigError: the disk is full.
        """
        new = list(events)
        lines = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in [*new, COMMIT])
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())
        self.events.extend(new)


def read_events(path: Path) -> list[Event]:
    """The events of a journal, which is left as it is.

    Raises:
        ConfigError: there is none, or it holds something else.
    """
    if not path.is_file():
        raise ConfigError(f"There is no journal {path}; name the work folder of a run of tutti distill bohdi.")
    return _read(path)[0]


def _read(path: Path) -> tuple[list[Event], int]:
    """The committed events and the bytes that they and their commits take."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    events: list[Event] = []
    pending: list[Event] = []
    whole = at = 0
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        at += len(line)
        event = _event(line)
        if event is None:
            if at == len(content):  # cut short
                break
            raise ConfigError(
                f"{path}:{number}: is no line of a journal; restore the file, or name another folder."
            )
        if event == COMMIT:
            events += pending
            pending, whole = [], at
        else:
            pending.append(event)
    return events, whole


def _event(line: bytes) -> Event | None:
    if not line.endswith(b"\n"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None
