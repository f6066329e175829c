"""The policy that drafts what followed the same tokens before, in the prompt or in the answer."""

from __future__ import annotations

from typing import ClassVar
from weakref import WeakValueDictionary

import numpy as np

from fusion.policy.pace import Pace
from fusion.policy.policy import ALL, Ask, Asking, Policy
from fusion.sequence.steps import draftable

LONGEST_MATCH = 4
SHORTEST_MATCH = 2
_BITS = 21  # for an id and for a position; three of them are a number of 64 bits


class PromptTable:
    """Where a prompt goes on after any few of its tokens; one for all answers to it."""

    _shared: ClassVar[WeakValueDictionary[int, PromptTable]] = WeakValueDictionary()

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids
        self._tokens = np.array(ids, np.int64)
        # Each pair of tokens with the place after it, in order: a few milliseconds for a hundred thousand tokens.
        at = np.arange(SHORTEST_MATCH, max(len(ids), SHORTEST_MATCH))
        self._pairs = np.sort((self._tokens[at - 2] << _BITS | self._tokens[at - 1]) << _BITS | at)

    @classmethod
    def of(cls, ids: list[int]) -> PromptTable:
        """The table of this very list, as long as any answer keeps it."""
        table = cls._shared.get(id(ids))  # it holds the list, so no other one has its id
        if table is None:
            table = cls._shared[id(ids)] = cls(ids)
        return table

    def longest(self, tail: list[int]) -> tuple[int, int] | None:
        """How many of the last tokens of `tail` stand in the prompt, and where it last goes on after them.

        None where fewer than two do, or nothing follows them.
        """
        if len(tail) < SHORTEST_MATCH:
            return None
        pair = tail[-2] << _BITS | tail[-1]
        begin, end = np.searchsorted(self._pairs, (pair << _BITS, (pair + 1) << _BITS))
        at = self._pairs[begin:end] & ((1 << _BITS) - 1)
        size = SHORTEST_MATCH
        while size < len(tail):
            longer = at[at > size]
            longer = longer[self._tokens[longer - size - 1] == tail[-size - 1]]
            if not len(longer):
                break
            at, size = longer, size + 1
        return (size, int(at[-1])) if len(at) else None


class Ngram(Policy):
    """Everyone is asked, about the tokens that the text's past suggests."""

    def __init__(self) -> None:
        self._pace = Pace()
        self._prompt: PromptTable | None = None
        self._tokens: list[int] = []
        self._read = 0  # how many of the answer's tokens are among these
        self._after: dict[tuple[int, ...], int] = {}  # where the tokens go on that follow these in the answer

    def ask(self, sequence: Asking) -> Ask:
        """Everyone, with what came after the same last tokens."""
        at = self._follows(self._learned(sequence))
        if at is None:
            return ALL
        length = self._pace.length(sequence.company)
        return Ask(None, draftable(sequence, self._tokens[at : at + length])) if length else ALL

    def checked(self, drafted: int, accepted: int) -> None:
        """Learn how long drafts may be."""
        self._pace.checked(drafted, accepted)

    def _learned(self, sequence: Asking) -> PromptTable:
        """The prompt's table, with what follows each few tokens of the answer noted."""
        if self._prompt is None:
            self._prompt = PromptTable.of(sequence.prompt.ids[sequence.view.pivot])
            self._tokens = list(self._prompt.ids)
        known = len(self._tokens)
        self._tokens += sequence.tokens[self._read :]
        self._read = len(sequence.tokens)
        for at in range(max(known, 1), len(self._tokens)):
            for size in range(SHORTEST_MATCH, LONGEST_MATCH + 1):
                if at >= size:
                    self._after[tuple(self._tokens[at - size : at])] = at
        return self._prompt

    def _follows(self, prompt: PromptTable) -> int | None:
        """Where the tokens go on that last followed as many of the last ones as possible."""
        size, found = prompt.longest(self._tokens[-LONGEST_MATCH:]) or (0, None)
        for longer in range(LONGEST_MATCH, max(size, SHORTEST_MATCH) - 1, -1):
            if (at := self._after.get(tuple(self._tokens[-longer:]))) is not None:
                return at
        return found
