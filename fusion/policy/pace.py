"""Pace: how far a draft goes, by what was accepted lately, what passes cost, and how full the batch is."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

LONGEST = 16
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
# How often a leading member's token is drawn, by the probability that it gives to its best one.
SURE = (0.5, 0.8, 0.95, 0.99)
ACCEPTED = (0.3, 0.6, 0.8, 0.93, 0.98)


@dataclass(slots=True)
class Costs:
    """What a pass of each member and a round of each ensemble took lately, in seconds."""

    passes: dict[str, float] = field(default_factory=dict)
    rounds: dict[str, float] = field(default_factory=dict)

    def passed(self, member: str, seconds: float) -> None:
        """Take in a pass over single tokens."""
        self.passes[member] = FADING * self.passes.get(member, seconds) + (1 - FADING) * seconds

    def waited(self, ensemble: str, seconds: float) -> None:
        """Take in how long the members took for a round of one token."""
        self.rounds[ensemble] = FADING * self.rounds.get(ensemble, seconds) + (1 - FADING) * seconds


class Followed:
    """How often the ensemble chose a member's best token lately, in one sequence."""

    def __init__(self) -> None:
        self._hits: dict[str, float] = {}
        self._choices = 0.0

    def chose(self, chosen: int, best: Mapping[str, int]) -> None:
        """Take in a choice, with the best token of each member."""
        self._choices = FADING * self._choices + 1
        for name, token in best.items():
            self._hits[name] = FADING * self._hits.get(name, 0.0) + (token == chosen)

    def share(self, name: str) -> float:
        """A member's share of the choices; its acceptance where it drafts."""
        return (self._hits.get(name, 0.0) + SEEN * EXPECTED) / (self._choices + SEEN)


class Pace:
    """The acceptance of one sequence's drafts, and the best length for it."""

    def __init__(self) -> None:
        self._hits = SEEN * EXPECTED
        self._tried = SEEN
        self._idle = 0
        self._sure = [[SEEN * share, SEEN] for share in ACCEPTED]

    @property
    def acceptance(self) -> float:
        """The probability that a drafted token is what is drawn."""
        return self._hits / self._tried

    def chance(self, confidence: float) -> float:
        """The probability that a token is drawn of which a leading member is so sure."""
        hits, tried = self._sure[bisect_right(SURE, confidence)]
        return hits / tried

    def checked(self, drafted: int, accepted: int, confidences: list[float] | None = None) -> None:
        """Take in how a draft went, and how sure of each of its tokens a leading member was.

        `confidences` may have those of tokens that were thought of and not drafted, which nothing is known of.
        """
        self._hits = self._hits * FADING + accepted
        self._tried = self._tried * FADING + accepted + (accepted < drafted)
        for at, confidence in enumerate((confidences or [])[: min(accepted + 1, drafted)]):
            bin = self._sure[bisect_right(SURE, confidence)]
            bin[:] = bin[0] * FADING + (at < accepted), bin[1] * FADING + 1

    def length(self, batch: int) -> int:
        """Tokens to draft that cost nothing but being checked, for the shortest time per token; 0 for none.

        Args:
            batch: sequences that are decoded at the same time.
        """
        best, gain = 0, GAIN
        for length in range(1, LONGEST + 1):
            cost = (OVERHEAD + batch * (length + 1)) / (OVERHEAD + batch)
            faster = _tokens(self.acceptance, length) / cost
            if faster > gain:
                best, gain = length, faster
        return best or self._probed()

    def seconds_led(self, lead: float, others: float, acceptance: float | None = None) -> float:
        """The shortest time per token in which one member drafts and the others check.

        Args:
            lead: seconds of a pass of the one that leads.
            others: seconds that the others take together for a token.
            acceptance: of its tokens; by default what was seen.
        """
        acceptance = self.acceptance if acceptance is None else acceptance
        return min(
            ((length + 1) * lead + others * (1 + length / OVERHEAD)) / _tokens(acceptance, length)
            for length in range(1, LONGEST + 1)
        )

    def least_chance(self, lead: float, others: float, plain: float) -> float:
        """How probable it must be that a whole led draft is accepted, for another token of it to pay; 1 for none.

        Args:
            lead, others: as in `seconds_led`.
            plain: seconds of a round without drafts.
        """
        seconds = self.seconds_led(lead, others)
        if plain > GAIN * seconds or self._probed():
            self._idle = 0
            return (lead + others / OVERHEAD) / min(seconds, plain)
        return 1.0

    def _probed(self) -> int:
        """A short draft once in a while, to see whether it pays by now."""
        self._idle += 1
        if self._idle < PROBE:
            return 0
        self._idle = 0
        return 2


def _tokens(acceptance: float, length: int) -> float:
    """Tokens that a checked draft gives on average, the one after it included (Leviathan et al., equation 1)."""
    return (1 - acceptance ** (length + 1)) / (1 - acceptance) if acceptance < 1 else length + 1.0
