"""Pace: how many tokens a draft is worth, by what was accepted lately and how full the batch is."""

from __future__ import annotations

LONGEST = 8
# A pass over a batch takes about as long as a pass over one token and as many more tokens as this, in tokens: on
# two cores a layer of 28,000 x 384 takes 2.0 ms for one row and 0.09 more for each further one.
OVERHEAD = 20
FADING = 0.9  # of what was seen, at every draft
EXPECTED = 0.7  # acceptance before anything was seen, which counts as SEEN tokens
SEEN = 4.0
# Sequences that are led one token at a time fall out of step, and no longer share their passes: with 16 of them a
# token takes half as long again as without drafts.
MOST_LED = 2
GAIN = 1.05  # a draft has to be this much faster
PROBE = 48  # after this many tokens without a draft one is tried again


class Pace:
    """The acceptance of one sequence's drafts, and the best length for it."""

    def __init__(self) -> None:
        self._hits = SEEN * EXPECTED
        self._tried = SEEN
        self._idle = 0

    @property
    def acceptance(self) -> float:
        """The probability that a drafted token is what is drawn."""
        return self._hits / self._tried

    def checked(self, drafted: int, accepted: int) -> None:
        """Take in how a draft went."""
        self._hits = self._hits * FADING + accepted
        self._tried = self._tried * FADING + accepted + (accepted < drafted)

    def length(self, members: int, batch: int, *, led: bool) -> int:
        """Tokens to draft for the shortest time per token; 0 where drafting does not pay.

        Args:
            members: those that check the draft, the one that leads included.
            batch: sequences that are decoded at the same time.
            led: whether one of the members drafts, token by token.
        """
        plain = members * (OVERHEAD + batch)
        best, gain = 0, GAIN
        if led and batch > MOST_LED:
            return 0
        for length in range(1, LONGEST + 1):
            check = OVERHEAD + batch * (length + 1)
            cost = (length + 1) * (OVERHEAD + batch) + (members - 1) * check if led else members * check
            tokens = sum(self.acceptance**i for i in range(length + 1))
            if plain * tokens / cost > gain:
                best, gain = length, plain * tokens / cost
        self._idle = 0 if best else self._idle + 1
        if self._idle >= PROBE:
            self._idle, best = 0, 2
        return best
