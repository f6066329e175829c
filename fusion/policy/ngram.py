"""The policy that drafts what followed the same tokens before, in the prompt or in the answer."""

from __future__ import annotations

from fusion.policy.pace import Pace
from fusion.policy.policy import ALL, Ask, Asking, Policy
from fusion.sequence.steps import draftable

LONGEST_MATCH = 4
SHORTEST_MATCH = 2


class Ngram(Policy):
    """Everyone is asked, about the tokens that the text's past suggests."""

    def __init__(self) -> None:
        self._pace = Pace()
        self._tokens: list[int] = []
        self._read = 0  # how many of the answer's tokens are among these
        self._after: dict[tuple[int, ...], int] = {}  # where the tokens go on that follow these

    def ask(self, sequence: Asking) -> Ask:
        """Everyone, with what came after the same last tokens."""
        self._learn(sequence)
        for size in range(LONGEST_MATCH, SHORTEST_MATCH - 1, -1):
            at = self._after.get(tuple(self._tokens[-size:]))
            if at is not None:
                length = self._pace.length(sequence.company)
                return Ask(None, draftable(sequence, self._tokens[at : at + length])) if length else ALL
        return ALL

    def checked(self, drafted: int, accepted: int) -> None:
        """Learn how long drafts may be."""
        self._pace.checked(drafted, accepted)

    def _learn(self, sequence: Asking) -> None:
        """Note what follows each few tokens; the last ones only once something follows them."""
        if not self._tokens:
            self._tokens = list(sequence.prompt.ids[sequence.view.pivot])
            self._note(0, len(self._tokens))
        known = len(self._tokens)
        self._tokens += sequence.tokens[self._read :]
        self._read = len(sequence.tokens)
        self._note(known, len(self._tokens))

    def _note(self, start: int, end: int) -> None:
        for at in range(max(start, 1), end):
            for size in range(SHORTEST_MATCH, LONGEST_MATCH + 1):
                if at >= size:
                    self._after[tuple(self._tokens[at - size : at])] = at
