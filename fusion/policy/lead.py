"""The policy that lets one member decode a few tokens alone, and the others check them in one pass."""

from __future__ import annotations

from copy import deepcopy

import numpy as np

from alignment.errors import InvalidRequestError
from fusion.policy.pace import LONGEST, MOST_LED, Pace
from fusion.policy.policy import ALL, Ask, Asking, Step
from fusion.sampling import draw
from fusion.sequence.steps import draftable, may_draft
from fusion.step import project


class Lead:
    """A named member drafts; without a name the one with which a token should take the shortest time.

    It goes on while it is likely enough that the others will accept the whole of it: how sure it is of a token
    says so better than how many there were.
    """

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._pace = Pace()
        self._leader = ""
        self._least = 1.0  # how probable the acceptance of a draft has to be
        self._chance = 1.0
        self._confidences: list[float] = []
        self._rng: np.random.Generator | None = None  # draws the numbers that the round is going to draw

    def ask(self, sequence: Asking) -> Ask:
        """The leader alone; everyone where a draft does not pay."""
        self._least, self._chance, self._confidences = 1.0, 1.0, []
        if sequence.company > MOST_LED or len(sequence.seats) < 2 or not may_draft(sequence):
            return ALL
        plain = sequence.costs.rounds.get(sequence.ensemble.name)
        if plain is None:
            return ALL
        leader = self._name or self._best(sequence, plain)
        if leader not in sequence.seats:
            return ALL
        self._least = self._pace.least_chance(*_shares(sequence, leader, plain), plain)
        if self._least >= 1:
            return ALL
        self._leader = leader
        self._rng = deepcopy(sequence.rng) if sequence.sampling.temperature > 0 else None
        return Ask((leader,))

    def answered(self, sequence: Asking) -> Ask | None:
        """The leader for one token more, then everyone for all of them."""
        if self._least >= 1 or sequence.asked.members is None:
            return None
        draft = sequence.asked.draft
        try:
            token = self._propose(sequence, draft) if len(draft) < LONGEST else None
        except InvalidRequestError:  # the grammar becomes too complex there, if the answer goes there
            token = None
        if token is not None:
            longer = draftable(sequence, (token,), draft)
            if len(longer) > len(draft):
                return Ask((self._leader,), longer)
        return Ask(None, draft)

    def checked(self, drafted: int, accepted: int) -> None:
        """Learn how far drafts may go."""
        self._pace.checked(drafted, accepted, self._confidences)

    def _best(self, sequence: Asking, plain: float) -> str:
        """The member to lead, by how often it was followed and by what a pass of it takes."""

        def seconds(name: str) -> float:
            return self._pace.seconds_led(*_shares(sequence, name, plain), sequence.followed.share(name))

        return min(sequence.voters, key=seconds, default="")

    def _propose(self, sequence: Asking, draft: tuple[Step, ...]) -> int | None:
        """What the leader would draw next if it were alone; None where that is not likely to be accepted."""
        seat = sequence.seats[self._leader]
        if seat.latest is None:
            return None
        newest = seat.latest.ids[-1:], seat.latest.logprobs[-1:]
        candidates = project([newest], [sequence.map_of(self._leader)], sequence.view.vocabulary_size)
        probabilities = candidates.probabilities[0, 0]
        constraint = draft[-1].constraint if draft else sequence.constraint
        if constraint is not None:
            probabilities = probabilities * constraint.allowed(candidates.tokens[0])
            probabilities /= probabilities.sum() or 1.0
        confidence = float(probabilities.max())
        chance = self._chance * self._pace.chance(confidence)
        if confidence == 0 or chance < self._least:
            return None
        self._chance = chance
        self._confidences.append(confidence)
        return draw(
            candidates.tokens[0],
            probabilities,
            sequence.sampling,
            constraint,
            generated=sequence.generated,
            prompt=sequence.prompt_ids,
            forbidden=sequence.ends.forbidden(sequence.length + sum(len(step.tokens) for step in draft)),
            rng=self._rng or sequence.rng,  # at temperature 0 nothing is drawn
        )


def _shares(sequence: Asking, leader: str, plain: float) -> tuple[float, float]:
    """What a pass of the leader takes, and what the others take, side by side or one after the other."""
    engine, known = sequence.ensemble.engine, sequence.costs.passes
    passes = {name: known.get(engine(name), plain / len(sequence.seats)) for name in sequence.seats}
    longest = max(seconds for name, seconds in passes.items() if name != leader)
    return passes[leader], max(longest, plain - passes[leader])
