"""Ensembles of running models: every member's maps into each pivot's vocabulary, for each part of an answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace

from alignment.methods.exact import exact_map
from alignment.methods.first_token import first_token_map
from alignment.vocab_map import VocabMap
from fusion.core import OnMemberFailure
from fusion.ensemble import Ensemble, Model, View
from fusion.maps import Maps
from fusion.options import FusionParams

# The map of one model's vocabulary into another's, for running text.
Align = Callable[[Model, Model], VocabMap]


def align_exact(source: Model, target: Model) -> VocabMap:
    """Tokens correspond where their surface bytes are the same."""
    return exact_map(
        source.tokenizer, target.tokenizer, source_stops=source.stop_ids, target_stop=target.stop_ids[0]
    )


def build_ensemble(
    name: str,
    models: Mapping[str, Model],
    pivot: str,
    *,
    defaults: FusionParams | None = None,
    align: Align = align_exact,
    on_member_failure: OnMemberFailure = "fail",
) -> Ensemble:
    """Join running models; `align` is asked for the map of each that needs one.

    Models with the pivot's tokenizer need no map, unless their ends are several: all of them go to one. Where any
    model needs a map, special tokens of the pivot that are no end token are masked, since the other members could
    not follow them; but not under a constraint, which says itself where one may come.
    """
    target = models[pivot]
    twins = {n: m for n, m in models.items() if m.tokenizer.fingerprint == target.tokenizer.fingerprint}
    masked = len(twins) < len(models)
    ends = frozenset(id for model in twins.values() for id in model.stop_ids)
    maps: dict[str, Maps] = {}
    view = View(dict(models), pivot, maps, ends, masked)
    for member_name, model in models.items():
        if member_name not in twins:
            _ = model.tokenizer.continuation  # worked out now, not while the first request waits
            maps[member_name] = _maps(model, target, align(model, target))
        elif masked or (len(ends) > 1 and len(models) > 1):
            maps[member_name] = view.own_maps(member_name)
        else:
            maps[member_name] = Maps()
    defaults = defaults or FusionParams()
    identity = {
        "models": {n: [m.origin, m.tokenizer.fingerprint] for n, m in models.items()},
        "pivot": pivot,
        "maps": {n: _digest(m) for n, m in maps.items()},
        "defaults": asdict(defaults),
    }
    fingerprint = fingerprint_of(json.dumps(identity, sort_keys=True))
    return Ensemble(name, view.models, {pivot: view}, defaults, fingerprint, on_member_failure)


def build_for_any_pivot(
    name: str,
    models: Mapping[str, Model],
    *,
    defaults: FusionParams | None = None,
    align: Align = align_exact,
    on_member_failure: OnMemberFailure = "fail",
) -> Ensemble:
    """Join running models whose pivot each prompt decides; `align` is asked for the maps of all pairs."""
    single = [
        build_ensemble(name, models, pivot, defaults=defaults, align=align, on_member_failure=on_member_failure)
        for pivot in models
    ]
    fingerprint = fingerprint_of(" ".join(ensemble.fingerprint for ensemble in single))
    views = {ensemble.pivot: ensemble.first for ensemble in single}
    return replace(single[0], views=views, fingerprint=fingerprint)


def fingerprint_of(identity: str) -> str:
    """The fingerprint of an ensemble, from all that its answers depend on."""
    return "tutti-" + hashlib.sha256(identity.encode()).hexdigest()[:16]


def _maps(source: Model, target: Model, running: VocabMap) -> Maps:
    """The map for running text, and what becomes of it where an answer begins."""
    rows = source.member.vocabulary_size
    own_lead, lead = source.tokenizer.chat_lead, target.tokenizer.chat_lead

    def beginning(target_lead: bytes) -> VocabMap:
        return first_token_map(
            running, source.tokenizer, target.tokenizer, source_lead=own_lead, target_lead=target_lead
        ).padded(rows)

    rest = running.padded(rows)
    first = beginning(lead) if own_lead or lead else rest
    return Maps(first, beginning(b"") if lead else first, rest)


def _digest(maps: Maps) -> list[str]:
    return [
        "identity" if m is None else hashlib.sha256(m.target_ids.tobytes() + m.weights.tobytes()).hexdigest()
        for m in (maps.first, maps.unled, maps.rest)
    ]
