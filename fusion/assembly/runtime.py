"""Runtime: members, maps, ensembles and the fuser that decodes them, built from specifications."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from alignment.errors import ConfigError
from alignment.methods.map_cache import MapCache
from alignment.vocab_map import VocabMap
from fusion.assembly.checkpoints import Checkpoint, engine_spec, open_checkpoint, require_adapters
from fusion.assembly.ensembles import build_ensemble, build_for_any_pivot, fingerprint_of
from fusion.assembly.learned import fingerprints, read_learned
from fusion.assembly.maps import MapMaker
from fusion.assembly.members import device_here, load_members
from fusion.assembly.specs import Ensembles, EnsembleSpec, Models, ViewSpec, named
from fusion.core import Member
from fusion.ensemble import Ensemble, Model
from fusion.learned.weights import LearnedWeights, equal_weights
from fusion.loop.fuser import Fuser
from fusion.members.checkpoint import listed_sampling
from fusion.members.identity import content_digest
from fusion.members.lineage import parents_of
from fusion.members.registry import ENGINES
from fusion.teams import release_team
from fusion.views import ModelView

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Runtime:
    """A loaded configuration: the served ensembles by name, and the fuser that decodes them, not yet started."""

    ensembles: dict[str, Ensemble]
    fuser: Fuser


def build(
    models: Models,
    ensembles: Ensembles,
    *,
    alone: Sequence[str],
    cache: MapCache,
    tutti: str,
    max_waiting: int,
) -> Runtime:
    """Load everything. All errors that can be found without weights are raised before any weights are read.

    Maps are learned before the engines load, so the memory for learning is free again when weights are read.

    Args:
        models: those to load.
        ensembles: what is made of them.
        alone: models that are served by themselves as well.
        cache: for maps that are learned.
        tutti: the version of the program.
        max_waiting: sequences that may wait for a place.

    Raises:
        BuildError: a sentence that names the model or the ensemble.
    """
    began = time.monotonic()
    # Engines that need the classes of transformers as they are come before those that change them.
    names = sorted(models, key=lambda name: ENGINES[models[name].engine].changes_transformers)
    checkpoints = [open_checkpoint(name, models[name]) for name in names]
    adapters = require_adapters({one.name: one for one in checkpoints}, ensembles)
    known = {one.name: one for one in checkpoints}
    maps = _maps(ensembles, known, cache, tutti)
    learned = {name: _learned(name, ensemble, known) for name, ensemble in ensembles.items()}
    with ExitStack() as on_failure:
        for one in checkpoints:
            log.info("loading %s (%s) from %s", one.name, one.spec.host, one.spec.source)
        members = load_members([(one.name, one.spec, engine_spec(one, adapters[one.name])) for one in checkpoints])
        for member in members.values():
            on_failure.callback(member.stop)
        running = {one.name: _model(one, members[one.name]) for one in checkpoints}
        built = {name: _ensemble(name, one, running, maps[name]) for name, one in ensembles.items()}
        built = {name: _with_learned(ensemble, learned[name]) for name, ensemble in built.items()}
        built |= {name: build_ensemble(name, {name: running[name]}, name) for name in alone}
        on_failure.pop_all()
    release_team()  # that learned the maps
    log.info("loaded %d models in %.1f s", len(running), time.monotonic() - began)
    views = {view: one.model for ensemble in ensembles.values() for view, one in ensemble.views.items()}
    return Runtime(built, Fuser(members, max_waiting=max_waiting, views=views))


def _model(checkpoint: Checkpoint, member: Member) -> Model:
    model = checkpoint.spec
    origin = f"{content_digest(checkpoint.source, revision=checkpoint.revision)} {checkpoint.dtype}"
    if model.adapter is not None:
        origin += f" {content_digest(model.adapter)}"
    view = ModelView(adapter=model.adapter)
    sampling = listed_sampling(checkpoint.source, checkpoint.revision)
    parents = parents_of(checkpoint.source)
    return Model(member, checkpoint.tokenizer, checkpoint.stop_ids, origin, parents, view, sampling)


def _view(name: str, model: Model, spec: ViewSpec) -> Model:
    """A view of a running model; its origin holds what it is shown, so that answers tell views apart."""
    adapter = spec.adapter or model.view.adapter
    view = ModelView(name, adapter, spec.system, spec.context, spec.template)
    origin = json.dumps([model.origin, spec.system, spec.context, spec.template], sort_keys=True, default=str)
    if spec.adapter is not None:
        origin += f" {content_digest(spec.adapter)}"
    return replace(model, origin=origin, view=view)


# By the names of the member and of the pivot.
Maps = dict[tuple[str, str], VocabMap]


def _maps(
    ensembles: Ensembles, checkpoints: dict[str, Checkpoint], cache: MapCache, tutti: str
) -> dict[str, Maps]:
    """By ensemble, the maps of those who need one into each possible pivot; learned where that will run."""
    vocabularies = {name: checkpoint.vocabulary for name, checkpoint in checkpoints.items()}
    maps: dict[str, Maps] = {name: {} for name in ensembles}
    for name, ensemble in ensembles.items():
        own = {member: vocabularies[ensemble.model_of(member)] for member in ensemble.members}
        for pivot in ensemble.pivots:
            # Learning takes float64, which mps does not have.
            device = device_here(checkpoints[ensemble.model_of(pivot)].spec) or "cpu"
            device = device if device.startswith("cuda") else "cpu"
            with named("ensemble", name):
                maker = MapMaker(ensemble, pivot, own, cache, tutti)
                for member in maker.members:
                    maps[name][member, pivot] = maker.required(member, device)
    return maps


def _ensemble(name: str, ensemble: EnsembleSpec, models: dict[str, Model], maps: Maps) -> Ensemble:
    members = {
        member: _view(member, models[ensemble.model_of(member)], ensemble.views[member])
        if member in ensemble.views
        else models[member]
        for member in ensemble.members
    }
    defaults, on_failure = ensemble.fusion, ensemble.on_member_failure

    def align(source: Model, target: Model) -> VocabMap:
        return maps[source.name, target.name]

    if ensemble.pivots != (ensemble.pivot,):
        return build_for_any_pivot(name, members, defaults=defaults, align=align, on_member_failure=on_failure)
    return build_ensemble(
        name, members, ensemble.pivot, defaults=defaults, align=align, on_member_failure=on_failure
    )


def _learned(name: str, ensemble: EnsembleSpec, checkpoints: dict[str, Checkpoint]) -> LearnedWeights | None:
    """The learned weights that an ensemble names; equal ones, with a warning, where they cannot be used."""
    file = ensemble.fusion.weighting.file
    if file is None:
        return None
    members = fingerprints(ensemble, checkpoints)
    try:
        return read_learned(file, members)
    except ConfigError as error:
        log.warning("ensemble %s weighs its members equally: %s", name, error)
        return equal_weights(members, f"{Path(file).name} cannot be used with these members: equal weights.")


def _with_learned(ensemble: Ensemble, learned: LearnedWeights | None) -> Ensemble:
    if learned is None:
        return ensemble
    fingerprint = fingerprint_of(f"{ensemble.fingerprint} {learned.digest}")
    return replace(ensemble, learned=learned, fingerprint=fingerprint)
