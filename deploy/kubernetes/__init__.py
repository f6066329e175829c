"""Kubernetes manifests. `python -m deploy.kubernetes` writes the one that repeats the alerts."""
