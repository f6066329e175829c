"""Journal: events that cost one append when they happen, and are counted many at a time.

Rounds are reported in the middle of decoding, when the models have just filled the processor's caches with their
weights: each line of Python and each small call to numpy costs several times what it does in a loop. So the
fuser's thread only notes what happened; a scrape counts it, or the fuser itself when the journal is full.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

Entry = TypeVar("Entry")


class Journal(Generic[Entry]):
    """Entries that wait to be counted. One thread adds, any may settle.

    Args:
        count: turns entries into metrics; called with the entries since the last time, oldest first.
        room: the most that waits, in the sizes given to `add`; bounds memory where nothing scrapes.
    """

    def __init__(self, count: Callable[[list[Entry]], None], room: int) -> None:
        self._count = count
        self._room = room
        self._entries: deque[Entry] = deque()
        self._size = 0
        self._lock = threading.Lock()

    def add(self, entry: Entry, size: int = 1) -> None:
        """Note what happened."""
        self._entries.append(entry)
        self._size += size
        if self._size >= self._room:
            self.settle()

    def settle(self) -> None:
        """Count what was added before; on return it is."""
        with self._lock:
            self._size = 0  # an addition that races with this is at worst weighed wrong
            entries = [self._entries.popleft() for _ in range(len(self._entries))]
            try:
                if entries:
                    self._count(entries)
            except Exception:  # a defect in measuring must end neither the decoding nor the scrape
                log.exception("%d entries were not counted", len(entries))
