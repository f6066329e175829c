"""Where the time of the fuser's loop goes."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace


@dataclass
class Clock:
    """Where the loop's time went, in seconds: `waiting` for messages, `fusing` (projection to sampling),
    `synchronising` (text, callers and the members' next advances); `elapsed` is all of it.
    """

    waiting: float = 0.0
    fusing: float = 0.0
    synchronising: float = 0.0
    elapsed: float = 0.0

    def copy(self) -> Clock:
        """A snapshot."""
        return replace(self)

    def since(self, earlier: Clock) -> Clock:
        """What was added after a snapshot."""
        pairs = zip(astuple(self), astuple(earlier), strict=True)
        return Clock(*(now - then for now, then in pairs))
