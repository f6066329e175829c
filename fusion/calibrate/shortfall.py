"""Shortfall: how far a candidate is behind the best member in its worst task, with and without chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def shortfall(
    scores: Sequence[float], members: Sequence[Sequence[float]], tasks: Sequence[str]
) -> tuple[float, float]:
    """The largest lead of a member over a candidate in a task, 0 to 1: as it is, and less what chance explains.

    With d the Q differences of a task, question by question, a lead is (sum d - sqrt(sum d^2)) / Q: what is above
    the standard error of differences that are 0 on average. One question lost of any number is nothing.

    Args:
        scores: of the candidate, [Q], 0 to 1.
        members: of each member on the same questions, [M][Q].
        tasks: of the questions, [Q].
    """
    lead = np.asarray(members, np.float64).reshape(-1, len(scores)) - np.asarray(scores, np.float64)
    largest = certain = 0.0
    for task in set(tasks):
        of_task = lead[:, [one == task for one in tasks]]
        total = of_task.sum(axis=1)
        beyond = total - np.sqrt((of_task**2).sum(axis=1))
        largest = max(largest, float(total.max(initial=0.0)) / of_task.shape[1])
        certain = max(certain, float(beyond.max(initial=0.0)) / of_task.shape[1])
    return largest, certain
