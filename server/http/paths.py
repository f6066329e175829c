"""Paths of the API that are treated apart from the others."""

from __future__ import annotations

# Load balancers and Prometheus ask these every few seconds: without a key, also while the server drains, and
# without a record or a line in the log.
OPEN_PATHS = frozenset({"/health", "/ready", "/metrics", "/version"})
