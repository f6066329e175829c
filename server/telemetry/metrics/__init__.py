"""Metrics of the server for Prometheus.

The server is one process, whatever the members run in: workers report through it. So the registry is a plain one
of the application's own, and prometheus_client's multi-process mode is not needed.
"""
