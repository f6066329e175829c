"""Budget: what is free in the members' caches. Places: the sequences there, and the work ready for them."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from copy import copy

from fusion.core import Capacity, Member, Task
from fusion.sequence.sequence import Sequence

log = logging.getLogger(__name__)

GROWTH = 64  # tokens by which a reservation grows at a time


class Budget:
    """The room that is still free in every member: places for sequences, and blocks of tokens.

    Below zero is what was taken beyond it, in a copy that says what waiting sequences leave to those behind them.
    Used by the fuser's thread only.
    """

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

    def copy(self) -> Budget:
        """The same room, to be taken without an effect on this one."""
        copied = copy(self)
        copied.blocks, copied.sequences = dict(self.blocks), dict(self.sequences)
        return copied

    def full(self, engine: str) -> bool:
        """Return whether no sequence has room there."""
        return self.sequences[engine] <= 0 or self.blocks[engine] <= 0

    def claimed(self, engine: str) -> bool:
        """Return whether as much was taken beyond the room as this member holds in all."""
        capacity = self._capacities[engine]
        beyond = -self.blocks[engine] * capacity.block
        return -self.sequences[engine] >= capacity.sequences or beyond >= capacity.cache_tokens

    def too_small(self, sequence: Sequence, names: Iterable[str]) -> str | None:
        """Return an engine that has not what the sequence asks for even while nothing else is there, if any."""
        for engine, tokens in _asked(sequence, names).items():
            capacity = self._capacities[engine]
            too_long = max(tokens) > capacity.context
            blocks = capacity.cache_tokens // capacity.block
            if too_long or len(tokens) > capacity.sequences or self._blocks(engine, *tokens) > blocks:
                return engine
        return None

    def reserved(self, name: str) -> int:
        """The tokens set aside in a member."""
        capacity = self._capacities[name]
        return capacity.cache_tokens - self.blocks[name] * capacity.block

    def admits(self, sequence: Sequence, names: Iterable[str]) -> bool:
        """Return whether each of these members has a place and the tokens that the sequence asks for.

        Views of one model share its engine's places and tokens.
        """
        return all(
            self.sequences[engine] >= len(tokens) and self.blocks[engine] >= self._blocks(engine, *tokens)
            for engine, tokens in _asked(sequence, names).items()
        )

    def take(self, sequence: Sequence, names: Iterable[str]) -> None:
        """Set aside what a sequence asks for in these members."""
        for name in names:
            engine = sequence.ensemble.engine(name)
            self.sequences[engine] -= 1
            self.blocks[engine] -= self._blocks(engine, sequence.seats[name].reserved)

    def give_back(self, sequence: Sequence, name: str) -> None:
        """A sequence is closed in one member."""
        engine = sequence.ensemble.engine(name)
        self.sequences[engine] += 1
        self.blocks[engine] += self._blocks(engine, sequence.seats[name].reserved)

    def grow(self, sequence: Sequence, name: str, tokens: int) -> bool:
        """Raise a reservation to `tokens`; False, and nothing changed, where the member has no room for it."""
        seat, engine = sequence.seats[name], sequence.ensemble.engine(name)
        extra = self._blocks(engine, tokens) - self._blocks(engine, seat.reserved)
        if extra > self.blocks[engine]:
            return False
        self.blocks[engine] -= extra
        seat.reserved = tokens
        return True

    def _blocks(self, name: str, *tokens: int) -> int:
        """Return the blocks that sequences of these numbers of tokens take up."""
        block = self._capacities[name].block
        return sum(-(-one // block) for one in tokens)


def _asked(sequence: Sequence, names: Iterable[str]) -> dict[str, list[int]]:
    """The tokens that a sequence asks for as each of these members, by engine."""
    asked: defaultdict[str, list[int]] = defaultdict(list)
    for name in names:
        asked[sequence.ensemble.engine(name)].append(sequence.seats[name].reserved)
    return asked


class Places:
    """Open sequences by number, what is set aside for them in every member, and what each member is given next.

    `holders` has each open sequence, and as which of its members, by engine and the number that it has there.
    Changed by the fuser's thread only.
    """

    def __init__(self, members: Mapping[str, Member]) -> None:
        self.open: dict[int, Sequence] = {}
        self.holders: dict[tuple[str, int], tuple[Sequence, str]] = {}
        self.budget = Budget({name: member.capacity for name, member in members.items()})
        self._members = members
        self._outbox: defaultdict[str, list[tuple[Sequence, str, Task]]] = defaultdict(list)

    def take(self, sequence: Sequence, names: Iterable[str]) -> None:
        """Open a sequence in these members; the budget must admit it."""
        self._take(sequence, names)
        self.open[sequence.number] = sequence

    def take_again(self, sequence: Sequence, name: str) -> bool:
        """Open a sequence in a member that has come back; False where that has no room for it."""
        member = self._members[sequence.ensemble.engine(name)]
        if sequence.seats[name].reserved > member.capacity.context:
            return False
        if not self.budget.admits(sequence, [name]):
            return False
        self._take(sequence, [name])
        return True

    def _take(self, sequence: Sequence, names: Iterable[str]) -> None:
        self.budget.take(sequence, names)
        for name in names:
            self.holders[sequence.ensemble.engine(name), sequence.numbers.of(name)] = sequence, name

    def make_room(self, sequence: Sequence, name: str) -> bool:
        """See that a member holds all that the sequence has there now; False where it cannot."""
        seat = sequence.seats[name]
        needed = seat.cached
        if needed <= seat.reserved:
            return True
        context = self._members[sequence.ensemble.engine(name)].capacity.context
        generous = min(needed + GROWTH, context)
        return needed <= context and any(self.budget.grow(sequence, name, tokens) for tokens in (generous, needed))

    def leave(self, sequence: Sequence, name: str) -> None:
        """Close a sequence in one member."""
        self.budget.give_back(sequence, name)
        engine, number = sequence.ensemble.engine(name), sequence.numbers.of(name)
        self.holders.pop((engine, number), None)
        self._members[engine].close([number])

    def close(self, sequence: Sequence) -> None:
        """Close a sequence everywhere, if it is open."""
        if self.open.pop(sequence.number, None) is not None:
            for name in sequence.seats:
                self.leave(sequence, name)

    def hand(self, sequence: Sequence, name: str, task: Task) -> None:
        """Have work for a member, for the next `send` to its engine."""
        self._outbox[sequence.ensemble.engine(name)].append((sequence, name, task))

    def send(self, engine: str) -> list[tuple[Sequence, str, Exception]]:
        """Give an engine all that is there for it of open sequences.

        Returns what it did not take: the sequence, the member, and why.
        """
        work = [
            one for one in self._outbox.pop(engine, ()) if one[0].number in self.open and one[1] in one[0].seats
        ]
        try:
            if work:
                self._members[engine].submit([task for _, _, task in work])
        except Exception as error:
            log.exception("member %s takes no work", engine)
            return [(sequence, name, error) for sequence, name, _ in work]
        return []
