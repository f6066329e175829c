"""Exposition: the answer to a scrape, with gauges that are set at that time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prometheus_client.exposition import choose_encoder

from server.telemetry.metrics.catalogue import Catalogue

if TYPE_CHECKING:
    from fusion.ensemble import Ensemble
    from fusion.loop.observer import Load


def describe(catalogue: Catalogue, ensembles: Mapping[str, Ensemble], version: str) -> None:
    """Set the metrics that never change."""
    catalogue.build_info.labels(version).set(1)
    for name, ensemble in ensembles.items():
        weighting: str = ensemble.defaults.weighting.method
        if weighting == "given":
            weighting = "uniform" if ensemble.defaults.weights is None else "fixed"
        for member in ensemble.models:
            labels = (name, member, ensemble.pivot_name, ensemble.defaults.combine, weighting)
            catalogue.ensemble_info.labels(*labels).set(1)


def refresh(catalogue: Catalogue, models: Mapping[str, object], load: Load) -> None:
    """Set the gauges to their current values."""
    for name in models:
        catalogue.sequences_running.labels(name).set(load.running.get(name, 0))
        catalogue.sequences_waiting.labels(name).set(load.waiting.get(name, 0))
    catalogue.waiting_limit.set(load.waiting_limit)
    for name, member in load.members.items():
        catalogue.member_up.labels(name).set(member.up)
        catalogue.member_sequences.labels(name).set(member.sequences)
        catalogue.member_kv_usage.labels(name).set(member.cached_tokens / member.cache_tokens)
        catalogue.member_kv_reserved.labels(name).set(member.reserved_tokens / member.cache_tokens)


def exposition(catalogue: Catalogue, accept: str) -> tuple[bytes, str]:
    """All metrics in the format that the scraper asks for (its Accept header), and the name of that format."""
    catalogue.settle()
    encode, content_type = choose_encoder(accept)
    return encode(catalogue.registry), content_type
