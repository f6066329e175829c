"""Write the alerts of deploy/prometheus as the resource that the Prometheus operator reads."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
ALERTS = FOLDER.parent / "prometheus" / "alerts.yaml"
RESOURCE = FOLDER / "monitored" / "prometheusrule.yaml"

HEAD = """\
# Written by `python -m deploy.kubernetes` from deploy/prometheus/alerts.yaml.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: tutti
  labels: {app.kubernetes.io/name: tutti}
spec:
"""


def resource() -> str:
    """The alerts, indented under `spec`, comments left behind."""
    lines = ALERTS.read_text().splitlines(keepends=True)
    return HEAD + "".join(line if line.isspace() else f"  {line}" for line in lines if not line.startswith("#"))


if __name__ == "__main__":
    RESOURCE.write_text(resource())
