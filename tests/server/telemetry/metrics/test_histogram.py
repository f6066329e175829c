"""The histogram against prometheus_client's own, and what holds for every metric of the catalogue."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import prometheus_client
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from server.telemetry.metrics.catalogue import Catalogue
from server.telemetry.metrics.histogram import Histogram

BOUNDS = (0.0, 0.25, 0.5, 1.0)


def samples(registry: CollectorRegistry) -> dict[tuple[str, str | None], float]:
    """By sample name and `le` as a number."""
    return {
        (sample.name, repr(float(le)) if (le := sample.labels.get("le")) else None): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@given(st.lists(st.one_of(st.sampled_from(BOUNDS), st.floats(0, 2)), max_size=40), st.integers(0, 40))
def test_it_counts_as_prometheus_client_does(values: list[float], split: int) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    series = Histogram("x", "X.", buckets=BOUNDS, registry=ours).labels()
    reference = prometheus_client.Histogram("x", "X.", buckets=BOUNDS, registry=theirs)
    for value in values[:split]:
        series.observe(value)
    series.observe_all(values[split:])
    for value in values:
        reference.observe(value)
    found, expected = samples(ours), samples(theirs)
    assert found.keys() == expected.keys()
    assert all(abs(found[name] - expected[name]) < 1e-9 for name in expected)


def test_no_value_is_lost_between_threads() -> None:
    series = Histogram("x", "X.", buckets=BOUNDS, registry=CollectorRegistry()).labels()

    def work(_: int) -> None:
        for _ in range(2000):
            series.observe(0.3)
            series.observe_all([0.1, 0.7])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
        series.read()
    assert series.read()[0] == [0, 8000, 16000, 24000, 24000]


def test_a_name_belongs_to_one_application() -> None:
    assert Catalogue().registry is not Catalogue().registry


def test_names_say_their_unit_and_labels_are_bounded() -> None:
    families = list(Catalogue().registry.collect())
    assert len(families) > 30
    for family in families:
        assert re.fullmatch(r"tutti_[a-z0-9_]+[a-z]", family.name)
        assert family.documentation.endswith(".")
        if family.type == "histogram":
            units = ("_seconds", "_tokens", "_ratio", "_nats", "_members")
            assert family.name.endswith(units), family.name
