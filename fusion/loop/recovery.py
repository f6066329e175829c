"""Which members are there. Those that fail come back; what becomes of their sequences is the ensemble's to say."""

from __future__ import annotations

import math
from collections.abc import Collection

from alignment.errors import UnavailableError
from fusion.core import Down
from fusion.ensemble import Ensemble
from fusion.sequence.sequence import Sequence


class Attendance:
    """Members that are `down`: by name, why, and when to expect them back.

    Written by the fuser's thread, read by any.
    """

    def __init__(self) -> None:
        self.down: dict[str, Down] = {}

    def lose(self, name: str, down: Down) -> None:
        """A member is down, or still is after another attempt."""
        self.down[name] = down

    def regain(self, name: str) -> None:
        """A member is back."""
        del self.down[name]

    def require(self, ensemble: Ensemble, members: Collection[str]) -> None:
        """UnavailableError when one of these members is down that the ensemble cannot do without, or all are."""
        none_left = self.down.keys() >= set(members)
        for name in members:
            down = self.down.get(name)
            if down is not None and (none_left or not ensemble.can_do_without(name)):
                raise unavailable(name, down)

    def hopeless(self, sequence: Sequence) -> UnavailableError | None:
        """What speaks against a sequence that is waiting."""
        try:
            self.require(sequence.ensemble, sequence.seats)
        except UnavailableError as error:
            return error
        return None


def unavailable(name: str, down: Down) -> UnavailableError:
    """What is said of a request that needs a member which is down."""
    seconds = max(1, math.ceil(down.retry_after))
    return UnavailableError(
        f"Member {name!r} is down: {down.reason}. It is being started anew; try again in {seconds} seconds.",
        retry_after=seconds,
    )
