"""From the bytes of emitted tokens to text that can be sent: whole characters, nothing past a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """The text of one sequence, as far as it is settled.

    Bytes that end inside a character wait for its rest (bytes that can never become a character turn into
    U+FFFD), and text that could be the beginning of a stop string waits until that is decided.
    """

    def __init__(self, stop: Sequence[str] = (), *, include_stop: bool = False) -> None:
        self.stop = tuple(stop)
        self.include_stop = include_stop
        self.stopped_by: str | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def push(self, data: bytes, *, may_stop: bool = True) -> str:
        """Add bytes; returns the text that they settle. A completed stop string sets `stopped_by`."""
        before = len(self._held)
        self._held += self._decoder.decode(data)
        if self.stop and may_stop:
            # One that was complete before may have come when nothing was to stop, and be held for a longer one.
            places = [(self._held.find(s, max(0, before - len(s) + 1)), -len(s), s) for s in self.stop]
            found = [place for place in places if place[0] >= 0]
            if found:
                start, _, self.stopped_by = min(found)
                end = start + len(self.stopped_by) if self.include_stop else start
                settled, self._held = self._held[:end], ""
                return settled
        return self._release(self._undecided())

    def flush(self, *, cut: bool = False) -> str:
        """All that is still held back: the sequence ends here.

        Where a limit `cut` it off, the beginning of a character whose rest would have come is left out.
        """
        if not cut:
            self._held += self._decoder.decode(b"", final=True)
        return self._release(0)

    def _undecided(self) -> int:
        """Return the number of characters at the end that could begin a stop string."""
        longest = max((len(s) for s in self.stop), default=1) - 1
        for n in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-n:]
            if any(s.startswith(tail) for s in self.stop):
                return n
        return 0

    def _release(self, keep: int) -> str:
        cut = len(self._held) - keep
        settled, self._held = self._held[:cut], self._held[cut:]
        return settled
