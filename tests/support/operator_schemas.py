"""Schemas of the Prometheus operator (monitoring.coreos.com/v1), as far as the manifests use them.

The operator's own definitions are not in any Python package; these allow less than they do.
"""

from __future__ import annotations

from typing import Any

LABELS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}
DURATION: dict[str, Any] = {"type": "string", "pattern": r"^(\d+h)?(\d+m)?(\d+s)?(\d+ms)?$", "minLength": 2}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of, "minItems": 1}


def _resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = _object({"name": {"type": "string"}, "labels": LABELS}, "name")
    api = {"const": "monitoring.coreos.com/v1"}
    properties = {"apiVersion": api, "kind": {"const": kind}, "metadata": metadata, "spec": spec}
    return _object(properties, *properties)


_ENDPOINT = _object(
    {
        "port": {"type": "string"},
        "path": {"type": "string", "pattern": "^/"},
        "interval": DURATION,
        "scrapeTimeout": DURATION,
    },
    "port",
)
_RULE = {
    "oneOf": [
        _object({"record": {"type": "string"}, "expr": {"type": "string"}, "labels": LABELS}, "record", "expr"),
        _object(
            {
                "alert": {"type": "string"},
                "expr": {"type": "string"},
                "for": DURATION,
                "labels": LABELS,
                "annotations": LABELS,
            },
            "alert",
            "expr",
        ),
    ]
}

SCHEMAS = {
    "ServiceMonitor": _resource(
        "ServiceMonitor",
        _object(
            {
                "jobLabel": {"type": "string"},
                "selector": _object({"matchLabels": LABELS}, "matchLabels"),
                "endpoints": _list(_ENDPOINT),
            },
            "selector",
            "endpoints",
        ),
    ),
    "PrometheusRule": _resource(
        "PrometheusRule",
        _object({"groups": _list(_object({"name": {"type": "string"}, "rules": _list(_RULE)}, "name", "rules"))}),
    ),
}
