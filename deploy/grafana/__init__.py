"""The dashboards, built with Grafana's foundation SDK. `python -m deploy.grafana` writes them to dashboards/."""
