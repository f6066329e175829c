"""Line: sequences wait in fair order until every member has room for them, prompt and answer.

A member's cache must never be overcommitted, because sequences that wait for each other's room would wait for
ever. So room for the whole answer is set aside at the start, and a sequence that turns out to need more in a
member's own spelling asks for it, and leaves that member when there is none.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from itertools import zip_longest

from alignment.errors import CONTEXT_LENGTH_EXCEEDED, OverloadedError, UnavailableError, field_error
from fusion.sequence.sequence import Sequence


def stopping() -> UnavailableError:
    """Return the error of what a server that ends leaves undone."""
    return UnavailableError("The server is shutting down; send the request to another one.", retry_after=1)


def require_room(max_tokens: int, room: int, *, param: str = "max_tokens") -> None:
    """Raise InvalidRequestError, naming `param`, unless an answer of `max_tokens` fits into `room`."""
    if max_tokens > room:
        raise field_error(
            param,
            f"is {str(max_tokens)[:40]}, but after this prompt there is room for {room} tokens; "
            f"lower {param} or shorten the prompt.",
            code=CONTEXT_LENGTH_EXCEEDED,
        )


SHARE = 4
"""A flow may have this many times as many waiting as there are places free."""


def most_of_one_flow(limit: int) -> int:
    """Return the number of sequences of one flow that a line of `limit` places takes while no other flow waits."""
    return -(-limit * SHARE // (SHARE + 1))


class Line:
    """The bounded waiting line: first in first out within a flow, flows in turn. Thread-safe.

    Its places are shared by dynamic thresholds (Choudhury and Hahne, 1998): what a flow may have waiting follows
    what is free, so that one flow alone gets most of the line and a newcomer still finds a place.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._flows: OrderedDict[str, deque[Sequence]] = OrderedDict()
        self._length = 0
        self._closed = False
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._length

    def put(self, sequence: Sequence) -> None:
        """Join the line; `OverloadedError` when it is full, `UnavailableError` when it is closed."""
        with self._lock:
            if self._closed:
                raise stopping()
            if self._length >= self.limit:
                raise OverloadedError(f"{self._length} sequences are waiting already; try again later.")
            own = len(self._flows.get(sequence.flow, ()))
            if own >= SHARE * (self.limit - self._length):
                raise OverloadedError(
                    f"{own} of your sequences are waiting already, and what places are left are for others; "
                    "try again later."
                )
            self._flows.setdefault(sequence.flow, deque()).append(sequence)
            self._length += 1

    def in_turn(self) -> list[Sequence]:
        """Everybody who waits, in the order in which they may start: the first of each flow, then the second."""
        with self._lock:
            rows = zip_longest(*self._flows.values())
            return [sequence for row in rows for sequence in row if sequence is not None]

    def remove(self, sequence: Sequence) -> None:
        """Take out a sequence that starts; its flow goes to the back."""
        with self._lock:
            queue = self._flows.pop(sequence.flow)
            queue.remove(sequence)
            if queue:
                self._flows[sequence.flow] = queue
            self._length -= 1

    def cancel(self, number: int) -> bool:
        """Take out a sequence that is not wanted any more, if it waits here; its flow keeps its place."""
        with self._lock:
            for flow, queue in self._flows.items():
                for sequence in queue:
                    if sequence.number == number:
                        queue.remove(sequence)
                        self._length -= 1
                        if not queue:
                            del self._flows[flow]
                        return True
        return False

    def close(self) -> list[Sequence]:
        """Admit no sequence any more; returns those that were waiting."""
        with self._lock:
            self._closed = True
            waiting = [sequence for queue in self._flows.values() for sequence in queue]
            self._flows.clear()
            self._length = 0
            return waiting
