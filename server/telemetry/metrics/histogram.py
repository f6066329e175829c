"""Histograms that count one value or many.

A round is counted once per sequence and member, so what prometheus_client's own histogram does for a value (two
locks and a search in Python) would add up; it cannot take many values at once.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Series:
    """One labelled series of a histogram. Thread-safe."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = np.zeros(len(bounds) + 1, dtype=np.int64)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        """Count one value."""
        place = bisect_left(self._bounds, value)  # a value equal to a bound belongs under it, as `le` says
        with self._lock:
            self._counts[place] += 1
            self._sum += value

    def observe_all(self, values: ArrayLike) -> None:
        """Count many, an array of any shape."""
        values = np.ravel(values)
        counts = np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._counts))
        with self._lock:
            self._counts += counts
            self._sum += float(values.sum())

    def read(self) -> tuple[list[int], float]:
        """The number of values at or below each bound (infinity last), and the sum of all values."""
        with self._lock:
            counts: list[int] = np.cumsum(self._counts).tolist()
            return counts, self._sum


class Histogram(Collector):
    """A family of series, one per combination of labels; the counterpart of `prometheus_client.Histogram`."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self.name = name
        self.documentation = documentation
        self.label_names = tuple(labels)
        self.buckets = tuple(map(float, buckets))
        self._names = [*map(repr, self.buckets), "+Inf"]
        self._series: dict[tuple[str, ...], Series] = {}
        self._lock = threading.Lock()
        registry.register(self)

    def labels(self, *values: str) -> Series:
        """The series of these label values, made where there is none."""
        assert len(values) == len(self.label_names)
        with self._lock:
            if values not in self._series:
                self._series[values] = Series(self.buckets)
            return self._series[values]

    def describe(self) -> Iterable[Metric]:
        """The family without values, by which a registry finds two of one name."""
        return [HistogramMetricFamily(self.name, self.documentation, labels=self.label_names)]

    def collect(self) -> Iterable[Metric]:
        """The family with its current values."""
        family = HistogramMetricFamily(self.name, self.documentation, labels=self.label_names)
        with self._lock:
            series = list(self._series.items())
        for values, one in series:
            counts, total = one.read()
            buckets = [(name, float(count)) for name, count in zip(self._names, counts, strict=True)]
            family.add_metric(values, buckets, total)
        return [family]
