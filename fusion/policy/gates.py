"""The policies that do not ask every member for every token, which saves passes and changes answers."""

from __future__ import annotations

import numpy as np

from fusion.policy.policy import ALL, Ask, Asking, Policy
from fusion.step import project

_LEAST = 1e-6  # a leading member of which the map carries nothing decides nothing, whatever the threshold


class Confident(Policy):
    """One member leads, and the others are asked only where its best token is not probable enough.

    That is under a threshold (as in GaC), or ahead of the second by less than a margin (as in SAFE, 2510.15346,
    but without a look at the others' tokens). Of the members that weigh something the one leads whose best token
    was chosen most often in the rounds of everyone, the first of which follows the prompt; the pivot among equals,
    and where a constraint limits the text, which the others' candidates may miss.
    """

    def __init__(self, threshold: float, margin: float = 0.0) -> None:
        self._threshold = threshold
        self._margin = margin

    def ask(self, sequence: Asking) -> Ask:
        """The leading member alone."""
        pivot, share = sequence.view.pivot, sequence.followed.share
        weighty = [name for name in sequence.seats if sequence.weights[name] > 0]
        if sequence.constraint is not None and not sequence.constraint.admits_any_text:
            return Ask((pivot,)) if pivot in weighty or not weighty else ALL
        return Ask((max(weighty, key=lambda name: (share(name), name == pivot), default=pivot),))

    def answered(self, sequence: Asking) -> Ask | None:
        """Everyone, where the leading member is not sure."""
        if sequence.asked.members is None:
            return None
        [leader] = sequence.asked.members
        seat = sequence.seats[leader]
        if seat.latest is None:
            return ALL
        newest, map = (seat.latest.ids[-1:], seat.latest.logprobs[-1:]), sequence.map_of(leader)
        if seat.inside is not None:  # of the character that has begun, in ids of the pivot
            newest, map = seat.inside, None
        candidates = project([newest], [map], sequence.view.vocabulary_size)
        tokens, probabilities = candidates.tokens[0], candidates.probabilities[0, 0]
        barred = np.isin(tokens, list(sequence.ends.forbidden(sequence.length)))
        limited, constraint = False, sequence.constraint
        if constraint is not None and not constraint.is_open:
            barred |= ~constraint.allowed(tokens)
            limited = sequence.view.follows_ids(leader)  # then it lists nothing but what may come
        if limited or barred.any():  # it is not sure of what must not come
            left = probabilities[~barred].sum()
            rest = left if limited else max(left, 1 - probabilities[barred].sum())
            probabilities = probabilities[~barred] / max(rest, _LEAST)
        second, best = np.sort(np.append(probabilities, [0.0, 0.0]))[-2:]
        return None if best >= max(self._threshold, _LEAST) and best - second >= self._margin else ALL


class Draw(Policy):
    """One member is drawn by weight and runs alone (ME, 2605.00419): a mixture, one component at a time.

    Inside a character that members spell in unlike tokens the mixture weighs them by what they expected of it as
    well, which is not known of those that did not run: there it is drawn by the weights alone.
    """

    def __init__(self) -> None:
        self._rng: np.random.Generator | None = None

    def ask(self, sequence: Asking) -> Ask:
        """The member that is drawn; its numbers are not those that tokens are drawn with."""
        if self._rng is None:
            self._rng = np.random.default_rng(int(sequence.rng.integers(2**63)))
        names = list(sequence.seats)
        weights = np.array([sequence.weights[name] for name in names])
        shares = weights / weights.sum() if weights.sum() > 0 else np.full(len(names), 1 / len(names))
        return Ask((names[int(self._rng.choice(len(names), p=shares))],))

    def answered(self, sequence: Asking) -> Ask | None:
        """Everyone, where nothing can come of what the one that was drawn would say."""
        if sequence.asked.members is None:
            return None
        [drawn] = sequence.asked.members
        latest, map, constraint = sequence.seats[drawn].latest, sequence.map_of(drawn), sequence.constraint
        if latest is None or (map is None and constraint is None):
            return None
        newest = latest.ids[-1:], latest.logprobs[-1:]
        candidates = project([newest], [map], sequence.view.vocabulary_size)
        may_come = True if constraint is None else constraint.allowed(candidates.tokens[0])
        return None if candidates.probabilities[0, 0].sum(where=may_come) > 0 else ALL
