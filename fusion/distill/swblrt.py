"""Sliding-window binomial likelihood ratio test: has a rate changed since its posterior was formed?

Bohdi (arXiv 2506.15721): the success rate that a Beta posterior stands for is tested against the latest outcomes;
where they contradict it, the posterior starts again from those outcomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from scipy.special import chdtrc

TINY = 1e-7
"""Added inside the published logarithms, so that rates of 0 and 1 stay finite. Part of the result."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome of one test.

    Attributes:
        reset: the rate has changed; `alpha` and `beta` are those of the window alone.
        alpha: of the Beta posterior afterwards.
        beta: likewise.
        statistic: twice the log likelihood ratio, None where the window is not full. Slightly below 0 where the
            rates agree, because of `TINY`.
        p_value: of a chi-squared distribution with one degree of freedom, None where the window is not full.
    """

    reset: bool
    alpha: float
    beta: float
    statistic: float | None = None
    p_value: float | None = None


def swblrt(alpha: float, beta: float, window: Sequence[int], *, window_size: int, threshold: float) -> Verdict:
    """Test Beta(alpha, beta) against the window's outcomes; a reset makes it Beta(1 + successes, 1 + failures).

    Args:
        alpha: at least 1.
        beta: at least 1.
        window: 0 or 1 each, oldest first; left unchanged. Nothing is tested while there are fewer than
            `window_size`.
        window_size: outcomes that a test needs.
        threshold: reset where the p-value is strictly below it.

    Raises:
        ValueError: a full window at alpha = beta = 1, whose posterior has no mode to test; a parameter below 1; an
            outcome that is neither 0 nor 1.
    """
    if not (alpha >= 1 and beta >= 1):
        raise ValueError(f"alpha and beta must be at least 1, not {alpha} and {beta}")
    if window_size < 1:
        raise ValueError(f"window_size must be at least 1, not {window_size}")
    if any(outcome not in (0, 1) for outcome in window):
        raise ValueError("the window may only hold 0 and 1")
    if len(window) < window_size:
        return Verdict(False, alpha, beta)
    if alpha + beta == 2:
        raise ValueError("Beta(1, 1) has no mode to test against a full window")
    successes, outcomes = int(sum(window)), len(window)

    def log_likelihood(rate: float) -> float:
        return successes * log(rate + TINY) + (outcomes - successes) * log(1 - rate + TINY)

    mode = (alpha - 1) / (alpha + beta - 2)
    statistic = 2 * (log_likelihood(successes / outcomes) - log_likelihood(mode))
    p_value = float(chdtrc(1, max(statistic, 0.0)))
    if p_value < threshold:
        return Verdict(True, 1 + successes, 1 + outcomes - successes, statistic, p_value)
    return Verdict(False, alpha, beta, statistic, p_value)
