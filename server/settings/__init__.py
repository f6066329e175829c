"""Configuration: one YAML file, checked to the last field before anything is loaded."""

from server.settings.read import accepted_keys, parse_settings, read_settings
from server.settings.schema import (
    EnsembleSettings,
    EvaluationSettings,
    ModelSettings,
    ServerSettings,
    Settings,
)

__all__ = [
    "EnsembleSettings",
    "EvaluationSettings",
    "ModelSettings",
    "ServerSettings",
    "Settings",
    "accepted_keys",
    "parse_settings",
    "read_settings",
]
