"""Telemetry: metrics, logs and traces of requests and rounds."""
