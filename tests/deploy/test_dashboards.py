"""The dashboards that are checked in: up to date, legible, and about metrics that exist."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from deploy.grafana.__main__ import rendered
from server.telemetry.metrics import histogram
from server.telemetry.metrics.catalogue import Catalogue
from tests.support.dashboards import boards, expressions, panels
from tests.support.dockerfile import REPOSITORY

BOARDS = boards()
PANELS = [
    pytest.param(panel, id=f"{name}: {panel['title']}")
    for name, board in BOARDS.items()
    for panel in panels(board)
]


def test_they_are_what_the_code_builds() -> None:
    """`python -m deploy.grafana` writes them anew."""
    for path, text in rendered().items():
        assert path.read_text() == text, path
    assert {path.stem for path in rendered()} == set(BOARDS)


def test_they_are_where_grafana_is_told_to_look() -> None:
    provider = yaml.safe_load((REPOSITORY / "deploy/grafana/provisioning/dashboards/tutti.yaml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    grafana = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]["grafana"]
    assert f"./deploy/grafana/dashboards:{folder}:ro" in grafana["volumes"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{folder}/ensemble.json"


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_can_be_read(panel: dict[str, Any]) -> None:
    """It says what it shows, in which unit, and what each line is."""
    assert panel["description"].endswith(".")
    if panel["type"] != "table":
        axis = panel["options"]["yAxis"] if panel["type"] == "heatmap" else panel["fieldConfig"]["defaults"]
        assert axis["unit"]
    if panel["type"] == "timeseries":
        assert all(target["legendFormat"] for target in panel["targets"])
    assert panel["datasource"]["uid"] == "${datasource}"


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_panels_lie_side_by_side_and_have_ids_of_their_own(board: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        cells = {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}
        assert max(columns) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_every_metric_they_ask_for_exists() -> None:
    known = _series()
    recorded = set(re.findall(r"record: (\S+)", _alerts()))
    for expression in expressions():
        assert expression.metrics <= known | recorded, expression.place


def test_every_metric_is_shown_somewhere() -> None:
    shown = {name for expression in expressions() for name in expression.metrics}
    for family in Catalogue().registry.collect():
        if family.name != "tutti_build_info":
            assert any(name.startswith(family.name) for name in shown), family.name


def test_limits_of_latencies_are_bounds_of_buckets() -> None:
    """Between two bounds a quantile is a guess."""
    bounds = {
        metric.name: metric.buckets
        for metric in vars(Catalogue()).values()
        if isinstance(metric, histogram.Histogram)
    }
    limits = [
        (metric, step["value"])
        for panel in panels(BOARDS["latency"])
        if panel["type"] != "heatmap"
        for step in panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [])[1:]
        for metric in set(re.findall(r"tutti_[a-z0-9_]+(?=_bucket)", panel["targets"][0]["expr"]))
    ]
    assert len(limits) > 10
    for metric, limit in limits:
        assert limit in bounds[metric], metric


def _alerts() -> str:
    return (REPOSITORY / "deploy/prometheus/alerts.yaml").read_text()


def _series() -> set[str]:
    """The names on the wire."""
    names: set[str] = set()
    for family in Catalogue().registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        names |= {family.name + suffix for suffix in suffixes}
    return names
