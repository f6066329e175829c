"""Intervals: a mean with its 95% confidence interval, by the bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with the ends of its 95% confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of at least one value, and the 2.5% and 97.5% quantiles of the means of 2,000 resamples."""
    data = np.asarray(values, dtype=np.float64)
    mean = float(data.mean())
    if len(data) == 1 or not data.std():
        return Estimate(mean, mean, mean)
    from scipy import stats

    rng = np.random.default_rng(seed)
    ends = stats.bootstrap(
        (data,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=rng
    ).confidence_interval
    return Estimate(mean, float(ends.low), float(ends.high))


def difference(one: Sequence[float], other: Sequence[float]) -> Estimate:
    """The mean of what `one` is above `other`, question by question."""
    return bootstrap((np.asarray(one, np.float64) - np.asarray(other, np.float64)).tolist())
