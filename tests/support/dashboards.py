"""The dashboards as Grafana reads them, and every expression that they and the rules ask Prometheus."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import yaml

from tests.support.dockerfile import REPOSITORY

DASHBOARDS = REPOSITORY / "deploy" / "grafana" / "dashboards"
ALERTS = REPOSITORY / "deploy" / "prometheus" / "alerts.yaml"


@dataclass(frozen=True)
class Expression:
    """A question to Prometheus; `place` says whose."""

    place: str
    text: str

    @property
    def metrics(self) -> set[str]:
        """The metrics of ours that it names."""
        return set(re.findall(r"\b(tutti[:_][a-z0-9_:]+)", self.text))


def filled(expression: str, range: str) -> str:
    """An expression without Grafana's variables: everything chosen, rates over `range`."""
    return re.sub(r"\$(model|member)\b", ".*", expression.replace("$__rate_interval", range))


def boards() -> dict[str, dict[str, Any]]:
    """By file name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """All but the rows' titles."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions() -> list[Expression]:
    """Of panels, recording rules and alerts; an alert asks whether, not where, it holds."""
    found = [
        Expression(f"{name}: {panel['title']} {target['refId']}", target["expr"])
        for name, board in boards().items()
        for panel in panels(board)
        for target in panel["targets"]
    ]
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            if "record" in rule:
                found.append(Expression(f"rule: {rule['record']}", rule["expr"]))
            else:
                whether = re.sub(r" (==|>|<) (?=[\d.]+(?: and |$))", r" \1 bool ", rule["expr"])
                found.append(Expression(f"alert: {rule['alert']}", whether))
    return found
