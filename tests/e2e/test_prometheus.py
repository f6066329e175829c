"""What Prometheus records of a server under load: every panel and alert finds its data, and latencies are true."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator

import pytest

from server.telemetry.metrics.catalogue import PER_TOKEN, REQUEST, TO_FIRST_TOKEN
from tests.support import prometheus
from tests.support.dashboards import Expression, expressions, filled
from tests.support.demo import ENSEMBLE
from tests.support.monitored_server import Observation, observation

pytestmark = pytest.mark.alone  # clients and server measure the same times

SECONDS = 12.0
RATES_OVER = "8s"

# What this load cannot be relied on to show: the series are there, but may be 0. (So are alerts.)
QUIET = {
    "throughput: Failing A": "no request fails on the server's side",
    "throughput: Line filled A": "the members have room for every request",
    "throughput: Sequences B": "the members have room for every request",
    "throughput: Members down A": "every member answers",
    "throughput: Sequences that lost a member A": "no member fails or outgrows its cache",
    "ensemble: Members started again A": "no member goes down",
    "ensemble: Drafts that hold A": "no request drafts",
    "ensemble: Drafted tokens A": "no request drafts",
    "ensemble: Drafted tokens B": "no request drafts",
    "ensemble: Drafted tokens C": "no request drafts",
    "rule: tutti:http_failed:ratio_rate5m": "no request fails on the server's side",
    "rule: tutti:line_filled:ratio": "the members have room for every request",
}


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observation]:
    if not prometheus.installed():
        pytest.skip("prometheus is not installed")
    with observation(tmp_path_factory.mktemp("monitored"), SECONDS) as found:
        yield found


@pytest.mark.parametrize("expression", expressions(), ids=lambda expression: expression.place)
def test_an_expression_finds_its_data(observed: Observation, expression: Expression) -> None:
    found = observed.prometheus.over_time(filled(expression.text, RATES_OVER), observed.start, observed.end)
    assert any(series.known for series in found)
    values = [value for series in found for _, value in series.points if math.isfinite(value)]
    assert any(values) or expression.place in QUIET or expression.place.startswith("alert: ")


def test_the_exceptions_are_of_expressions_that_exist() -> None:
    assert set(QUIET) <= {expression.place for expression in expressions()}


@pytest.mark.parametrize(
    ("metric", "clients", "bounds"),
    [
        ("time_to_first_token_seconds", "first_token", TO_FIRST_TOKEN),
        ("time_per_output_token_seconds", "per_token", PER_TOKEN),
        ("e2e_request_latency_seconds", "whole", REQUEST),
    ],
)
def test_latencies_are_what_clients_measured(
    observed: Observation, metric: str, clients: str, bounds: tuple[float, ...]
) -> None:
    """From the shortest to the longest, nine of ten lie within one bucket: little is between client and server.

    Single quantiles would not do: between two groups of latencies, one request more or less is a jump.
    """
    recorded = observed.prometheus.histogram(f'tutti_{metric}_bucket{{model="{ENSEMBLE}"}}')
    measured = [bisect.bisect_left(bounds, value) for value in sorted(getattr(observed.measured, clients))]
    assert len(recorded) == len(measured)
    near = [abs(a - b) <= 1 for a, b in zip(recorded, measured, strict=True)]
    assert sum(near) >= 0.9 * len(near), (recorded, measured)


def test_requests_are_counted_once(observed: Observation) -> None:
    answers = len(observed.measured.whole)
    assert answers > 10
    ended = f'sum(tutti_requests_total{{model="{ENSEMBLE}", finish_reason="length"}})'
    assert observed.prometheus.value(ended) == answers
    assert observed.prometheus.value('sum(tutti_requests_total{finish_reason="cancelled"})') > 0
    assert observed.prometheus.value('sum(tutti_http_requests_total{status=~"4.."})') > 0


def test_rules_are_evaluated_and_no_alert_fires(observed: Observation) -> None:
    rules = [rule for group in observed.prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert rules
    assert {rule["health"] for rule in rules} == {"ok"}
    assert "firing" not in {rule["state"] for rule in rules if rule["type"] == "alerting"}
