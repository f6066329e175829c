"""Shortfall: how far a candidate is behind the best member in its worst task, beyond chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def shortfall(scores: Sequence[float], members: Sequence[Sequence[float]], tasks: Sequence[str]) -> float:
    """The largest lead of a member over a candidate in a task, 0 to 1, less the lead that chance explains.

    With d the Q differences of a task, question by question, a lead is (sum d - sqrt(sum d^2)) / Q: what is above
    the standard error of differences that are 0 on average. One question lost of any number is nothing.

    Args:
        scores: of the candidate, [Q], 0 to 1.
        members: of each member on the same questions, [M][Q].
        tasks: of the questions, [Q].
    """
    lead = np.asarray(members, np.float64).reshape(-1, len(scores)) - np.asarray(scores, np.float64)
    found = 0.0
    for task in set(tasks):
        of_task = lead[:, [one == task for one in tasks]]
        beyond = of_task.sum(axis=1) - np.sqrt((of_task**2).sum(axis=1))
        found = max(found, float(beyond.max(initial=0.0)) / of_task.shape[1])
    return found
