"""Configuration: one YAML file, checked to the last field before anything is loaded."""

from server.settings.ensembles import EnsembleSettings
from server.settings.read import accepted_keys, parse_settings, read_settings
from server.settings.schema import EvaluationSettings, ModelSettings, Settings
from server.settings.server import ServerSettings

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
