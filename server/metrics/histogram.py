"""Histograms that take a value for the price of an append.

A round is observed once per sequence and member, so what prometheus_client's own histogram does for a value (two
locks and a search in Python) would add up. Here values wait in a list and are counted many at a time with numpy.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

PENDING = 1024  # values that wait at most, so that memory is bounded where nobody scrapes


class Series:
    """One labelled series of a histogram. Thread-safe."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = np.asarray(bounds)
        self._counts = np.zeros(len(bounds) + 1, dtype=np.int64)
        self._sum = 0.0
        self._pending: list[float] = []
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        """Count one value."""
        with self._lock:
            self._pending.append(value)
            if len(self._pending) >= PENDING:
                self._count_pending()

    def observe_all(self, values: Sequence[float]) -> None:
        """Count many."""
        with self._lock:
            self._pending.extend(values)
            if len(self._pending) >= PENDING:
                self._count_pending()

    def read(self) -> tuple[list[int], float]:
        """How many values were at most each bound (infinity last), and the sum of all."""
        with self._lock:
            self._count_pending()
            counts: list[int] = np.cumsum(self._counts).tolist()
            return counts, self._sum

    def _count_pending(self) -> None:
        if self._pending:
            values = np.asarray(self._pending)
            self._pending.clear()
            # A value equal to a bound belongs under it, as Prometheus' `le` says.
            self._counts += np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._counts))
            self._sum += float(values.sum())


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
        """The family as it stands."""
        family = HistogramMetricFamily(self.name, self.documentation, labels=self.label_names)
        with self._lock:
            series = list(self._series.items())
        for values, one in series:
            counts, total = one.read()
            buckets = [(name, float(count)) for name, count in zip(self._names, counts, strict=True)]
            family.add_metric(values, buckets, total)
        return [family]
