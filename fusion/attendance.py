"""Which members are there. Those that fail come back; what becomes of their sequences is the ensemble's to say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from alignment.errors import Unavailable
from fusion.core import Down
from fusion.ensemble import Ensemble
from fusion.sequence import Sequence


class Attendance:
    """Members that are down, and how often that was. Written by the fuser's thread, read by any.

    Attributes:
        down: by name, why, and when to expect it back.
        failures: how often each member went down.
        returns: how often each came back.
        degraded: sequences that went on without a member that had failed, by ensemble.
    """

    def __init__(self) -> None:
        self.down: dict[str, Down] = {}
        self.failures: Counter[str] = Counter()
        self.returns: Counter[str] = Counter()
        self.degraded: Counter[str] = Counter()

    def lose(self, name: str, down: Down) -> None:
        """A member is down, or still is after another attempt."""
        if name not in self.down:
            self.failures[name] += 1
        self.down[name] = down

    def regain(self, name: str) -> None:
        """A member is back."""
        del self.down[name]
        self.returns[name] += 1

    def require(self, ensemble: Ensemble, members: Iterable[str]) -> None:
        """Raise Unavailable when one of these members of the ensemble is down and cannot be done without."""
        for name in members:
            down = self.down.get(name)
            if down is not None and not ensemble.can_do_without(name):
                raise unavailable(name, down)

    def hopeless(self, sequence: Sequence) -> Unavailable | None:
        """What speaks against a sequence that is waiting."""
        try:
            self.require(sequence.ensemble, sequence.seats)
        except Unavailable as error:
            return error
        return None


def unavailable(name: str, down: Down) -> Unavailable:
    """What is said of a request that needs a member which is down."""
    seconds = max(1, math.ceil(down.retry_after))
    return Unavailable(
        f"Member {name!r} is down: {down.reason}. It is being started anew; try again in {seconds} seconds.",
        retry_after=seconds,
    )
