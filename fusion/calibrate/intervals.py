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


def bootstrap(values: Sequence[float]) -> Estimate:
    """The mean of at least one value, and the 2.5% and 97.5% quantiles of the means of 2,000 resamples.

    Values that are all equal leave nothing to resample: the interval is their point.
    """
    data = np.asarray(values, dtype=np.float64)
    mean = float(data.mean())
    if len(data) == 1 or not data.std():
        return Estimate(mean, mean, mean)
    from scipy import stats

    rng = np.random.default_rng(0)
    ends = stats.bootstrap(
        (data,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=rng
    ).confidence_interval
    return Estimate(mean, float(ends.low), float(ends.high))


def chance(one: Sequence[float], other: Sequence[float]) -> float:
    """The probability of so large a mean of `one` above `other` if either were as likely to be ahead.

    By flipping the signs of the differences: all ways where there are few, else 10,000. Of a few questions that
    differ, all the same way, the bootstrap's interval leaves out 0 too early.
    """
    from scipy import stats

    differences = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    found = stats.permutation_test(
        (differences,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=10_000,
        alternative="greater",
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def difference(one: Sequence[float], other: Sequence[float]) -> Estimate:
    """The mean of what `one` is above `other`, question by question."""
    return bootstrap((np.asarray(one, np.float64) - np.asarray(other, np.float64)).tolist())
