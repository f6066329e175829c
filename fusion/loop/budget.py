"""Budget: what is free in the members' caches. Places: the sequences there, and the work ready for them."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping

from fusion.core import Capacity, Member, Task
from fusion.sequence.sequence import Sequence

log = logging.getLogger(__name__)

GROWTH = 64  # tokens by which a reservation grows at a time


class Budget:
    """The room that is still free in every member. Used by the fuser's thread only."""

    def __init__(self, capacities: Mapping[str, Capacity]) -> None:
        self.blocks: dict[str, int] = {}
        self.sequences: dict[str, int] = {}
        self._capacities: dict[str, Capacity] = {}
        for name, capacity in capacities.items():
            self.reset(name, capacity)

    def reset(self, name: str, capacity: Capacity) -> None:
        """A member is there, or back, with nothing in it."""
        self.blocks[name] = capacity.cache_tokens // capacity.block
        self.sequences[name] = capacity.sequences
        self._capacities[name] = capacity

    def reserved(self, name: str) -> int:
        """The tokens set aside in a member."""
        capacity = self._capacities[name]
        return capacity.cache_tokens - self.blocks[name] * capacity.block

    def admits(self, sequence: Sequence, names: Iterable[str]) -> bool:
        """Return whether each of these members has a place and the tokens that the sequence asks for."""
        return all(
            self.sequences[name] > 0 and self.blocks[name] >= self._blocks(name, sequence.seats[name].reserved)
            for name in names
        )

    def take(self, sequence: Sequence, names: Iterable[str]) -> None:
        """Set aside what a sequence asks for in these members."""
        for name in names:
            self.sequences[name] -= 1
            self.blocks[name] -= self._blocks(name, sequence.seats[name].reserved)

    def give_back(self, sequence: Sequence, name: str) -> None:
        """A sequence is closed in one member."""
        self.sequences[name] += 1
        self.blocks[name] += self._blocks(name, sequence.seats[name].reserved)

    def grow(self, sequence: Sequence, name: str, tokens: int) -> bool:
        """Raise a reservation to `tokens`; False, and nothing changed, where the member has no room for it."""
        seat = sequence.seats[name]
        extra = self._blocks(name, tokens) - self._blocks(name, seat.reserved)
        if extra > self.blocks[name]:
            return False
        self.blocks[name] -= extra
        seat.reserved = tokens
        return True

    def _blocks(self, name: str, tokens: int) -> int:
        """Return the blocks that this number of tokens of one sequence takes up."""
        return -(-tokens // self._capacities[name].block)


class Places:
    """Open sequences by number, what is set aside for them in every member, and what each member is given next.

    Changed by the fuser's thread only.
    """

    def __init__(self, members: Mapping[str, Member]) -> None:
        self.open: dict[int, Sequence] = {}
        self.budget = Budget({name: member.capacity for name, member in members.items()})
        self._members = members
        self._outbox: defaultdict[str, list[Task]] = defaultdict(list)

    def take(self, sequence: Sequence, names: Iterable[str]) -> None:
        """Open a sequence in these members; the budget must admit it."""
        self.budget.take(sequence, names)
        self.open[sequence.number] = sequence

    def take_again(self, sequence: Sequence, member: Member) -> bool:
        """Open a sequence in a member that has come back; False where that has no room for it."""
        if sequence.seats[member.name].reserved > member.capacity.context:
            return False
        if not self.budget.admits(sequence, [member.name]):
            return False
        self.budget.take(sequence, [member.name])
        return True

    def make_room(self, sequence: Sequence, name: str) -> bool:
        """See that a member holds all that the sequence has there now; False where it cannot."""
        seat, context = sequence.seats[name], self._members[name].capacity.context
        needed = seat.cached
        if needed <= seat.reserved:
            return True
        generous = min(needed + GROWTH, context)
        return needed <= context and any(self.budget.grow(sequence, name, tokens) for tokens in (generous, needed))

    def leave(self, sequence: Sequence, name: str) -> None:
        """Close a sequence in one member."""
        self.budget.give_back(sequence, name)
        self._members[name].close([sequence.number])

    def close(self, sequence: Sequence) -> None:
        """Close a sequence everywhere, if it is open."""
        if self.open.pop(sequence.number, None) is not None:
            for name in sequence.seats:
                self.leave(sequence, name)

    def hand(self, name: str, task: Task) -> None:
        """Have work for a member, for the next `send`."""
        self._outbox[name].append(task)

    def send(self, name: str) -> list[tuple[Sequence, Exception]]:
        """Give a member all that is there for it of open sequences; returns those it did not take, and why."""
        tasks = self._outbox.pop(name, ())
        current = [task for task in tasks if (open := self.open.get(task.sequence)) and name in open.seats]
        try:
            if current:
                self._members[name].submit(current)
        except Exception as error:
            log.exception("member %s takes no work", name)
            return [(self.open[task.sequence], error) for task in current]
        return []
