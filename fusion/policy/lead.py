"""The policy that lets one member decode a few tokens alone, and the others check them in one pass."""

from __future__ import annotations

from copy import deepcopy

import numpy as np

from fusion.policy.pace import Pace
from fusion.policy.policy import ALL, Ask, Asking
from fusion.sampling import sample
from fusion.step import project


class Lead:
    """A named member drafts; without a name the one whose choices the ensemble has followed most often."""

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._pace = Pace()
        self._leader = ""
        self._length = 0
        self._rng: np.random.Generator | None = None  # draws the numbers that the round is going to draw

    def ask(self, sequence: Asking) -> Ask:
        """The leader alone; everyone where a draft does not pay."""
        length = self._pace.length(len(sequence.seats), sequence.company, led=True)
        self._length = min(length, sequence.sampling.max_tokens - sequence.length - 1)
        followed = sequence.followed
        leader = self._name or max(sequence.voters, key=lambda name: followed.get(name, 0.0), default="")
        if self._length < 1 or len(sequence.seats) < 2 or leader not in sequence.seats or not sequence.spelled:
            self._length = 0
            return ALL
        self._leader = leader
        self._rng = deepcopy(sequence.rng) if sequence.sampling.temperature > 0 else None
        return Ask((leader,))

    def answered(self, sequence: Asking) -> Ask | None:
        """The leader for one token more, then everyone for all of them."""
        if not self._length or sequence.asked.members is None:
            return None
        draft = sequence.asked.draft
        token = self._propose(sequence)
        draft = draft if token is None else sequence.draftable((*draft, token))
        if len(draft) == len(sequence.asked.draft) or len(draft) >= self._length:
            return Ask(None, draft)
        return Ask((self._leader,), draft)

    def checked(self, drafted: int, accepted: int) -> None:
        """Learn how long drafts may be."""
        self._pace.checked(drafted, accepted)

    def _propose(self, sequence: Asking) -> int | None:
        """What the leader would draw next if it were alone."""
        seat = sequence.seats[self._leader]
        if seat.latest is None:
            return None
        newest = seat.latest.ids[-1:], seat.latest.logprobs[-1:]
        candidates = project([newest], [sequence.map_of(self._leader)], sequence.view.vocabulary_size)
        if not candidates.probabilities.any():
            return None
        return sample(
            candidates.tokens[0],
            candidates.probabilities[0, 0],
            sequence.sampling,
            generated=sequence.generated,
            prompt=sequence.prompt_ids,
            forbidden=sequence.forbidden,
            rng=self._rng or sequence.rng,  # at temperature 0 nothing is drawn
        )
