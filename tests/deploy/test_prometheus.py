"""Prometheus's configuration and rules, checked and exercised by its own tool."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.telemetry.metrics.catalogue import Catalogue
from tests.support.dockerfile import REPOSITORY

FOLDER = REPOSITORY / "deploy" / "prometheus"
RULES = [
    rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
TESTS = Path(__file__).with_name("alerts_test.yaml")


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", FOLDER / "prometheus.yaml"),
        ("check", "rules", FOLDER / "alerts.yaml"),
        ("test", "rules", TESTS),
    ],
    ids=lambda arguments: " ".join(map(str, arguments[:2])),
)
def test_promtool(arguments: tuple[str | Path, ...]) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    result = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_says_what_to_do_and_is_tested(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    for annotation in ("summary", "runbook"):
        assert alert["annotations"][annotation].endswith(".")
    assert alert["alert"] in TESTS.read_text()


def test_the_threshold_of_a_latency_is_a_bound_of_its_buckets() -> None:
    """Between two bounds a quantile is a guess."""
    slow = next(alert for alert in ALERTS if alert["alert"] == "TuttiSlowFirstToken")
    assert float(slow["expr"].split(">")[1]) in Catalogue().time_to_first_token.buckets


def test_rules_name_metrics_that_exist() -> None:
    known = {family.name for family in Catalogue().registry.collect()}
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    for rule in RULES:
        for name in re.findall(r"\b(tutti[:_][a-z0-9_:]+)", rule["expr"]):
            base = re.sub(r"_(total|bucket|sum|count)$", "", name)
            assert {name, base} & (known | recorded), name
