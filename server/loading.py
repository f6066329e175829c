"""From settings to what serves them: checkpoints, engines, members, ensembles, one fuser."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from alignment.errors import ConfigError
from alignment.methods.registry import ModelVocabulary
from alignment.text.tokenizer import Tokenizer
from alignment.vocab_map import VocabMap
from fusion.core import Member
from fusion.distill.lineage import parents_of
from fusion.ensemble import Ensemble, Model, build_ensemble, build_for_any_pivot
from fusion.loop.fuser import Fuser
from fusion.members.checkpoint import DTYPES, read_config, stop_ids, weight_files
from fusion.members.identity import content_digest
from fusion.members.registry import EngineSpec
from fusion.members.transformers.architecture import context_length, require_decoder, why_not_packed
from server.hosting import device_here, load_members
from server.maps import members_to_map, open_cache, required_map
from server.settings import EnsembleSettings, ModelSettings, Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """All of a model but its weights.

    `dtype` is what `auto` came to, `config` the configuration as transformers reads it, `not_packed` what keeps
    the architecture from the fast path, None where nothing is known to.
    """

    name: str
    settings: ModelSettings
    dtype: str
    config: Any
    not_packed: str | None
    vocabulary: ModelVocabulary

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own."""
        return self.vocabulary.tokenizer

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end its answers."""
        return self.vocabulary.stop_ids


@dataclass(frozen=True)
class Runtime:
    """What a configuration comes to: what is served, by name, and the fuser that decodes it. Not started."""

    ensembles: dict[str, Ensemble]
    fuser: Fuser


def build(settings: Settings) -> Runtime:
    """Load everything that is needed to serve; all that can be wrong without weights is found before any is read.

    Maps come before the engines: the memory that learning takes is free again when the weights arrive.

    Raises:
        ConfigError: a sentence that names the model.
    """
    began = time.monotonic()
    # vLLM changes classes of transformers in its process; whoever needs them as they are comes first.
    names = sorted(settings.needed, key=lambda name: settings.models[name].engine == "vllm")
    checkpoints = [open_checkpoint(name, settings.models[name]) for name in names]
    maps = _maps(settings, {checkpoint.name: checkpoint for checkpoint in checkpoints})
    with ExitStack() as on_failure:
        for one in checkpoints:
            log.info("loading %s (%s) from %s", one.name, one.settings.host, one.settings.source)
        members = load_members([(one.name, one.settings, engine_spec(one)) for one in checkpoints])
        for member in members.values():
            on_failure.callback(member.stop)
        models = {one.name: _model(one, members[one.name]) for one in checkpoints}
        ensembles = {name: _ensemble(name, one, models, maps[name]) for name, one in settings.ensembles.items()}
        if settings.server.serve_models:
            ensembles |= {name: build_ensemble(name, {name: models[name]}, name) for name in settings.needed}
        on_failure.pop_all()
    log.info("loaded %d models in %.1f s", len(models), time.monotonic() - began)
    return Runtime(ensembles, Fuser(members, max_waiting=settings.server.max_waiting))


def open_checkpoint(name: str, model: ModelSettings) -> Checkpoint:
    """Read and check all of a checkpoint but its weights.

    Raises:
        ConfigError: the device, a file, the architecture or the tokenizer will not do; names the model.
    """
    source, revision, trust = model.source, model.revision, model.trust_remote_code
    try:
        device_here(model)
        config = read_config(source, revision=revision, trust_remote_code=trust)
        not_packed = _check_architecture(model, config) if model.engine == "transformers" else None
        if model.engine_args.get("load_format", "auto") in ("auto", "safetensors"):
            weight_files(source, revision=revision)
        vocabulary = read_vocabulary(source, revision=revision, trust_remote_code=trust)
        _check_vocabulary(source, config, vocabulary.tokenizer)
        return Checkpoint(name, model, _dtype(model, config), config, not_packed, vocabulary)
    except ConfigError as error:
        raise ConfigError(f"models.{name}: {error}") from error


def read_vocabulary(
    source: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> ModelVocabulary:
    """The tokenizer of a checkpoint and its end tokens.

    Raises:
        ConfigError: there is no such checkpoint, its tokenizer will not do, or it has no end token.
    """
    tokenizer = Tokenizer.load(source, revision=revision, trust_remote_code=trust_remote_code)
    stops = stop_ids(source, revision)
    if not stops and tokenizer.hf.eos_token_id is not None:
        stops = (tokenizer.hf.eos_token_id,)
    if not stops:
        raise ConfigError(f"{source} names no end token; set eos_token_id in its generation_config.json.")
    return ModelVocabulary(source, tokenizer, stops, revision, trust_remote_code)


def engine_spec(checkpoint: Checkpoint) -> EngineSpec:
    """What the model's engine is built from, wherever that happens."""
    model = checkpoint.settings
    arguments: dict[str, Any] = {
        "source": model.source,
        "dtype": checkpoint.dtype,
        "device": model.device,
        "revision": model.revision,
        "trust_remote_code": model.trust_remote_code,
        "cache_tokens": model.cache_tokens,
        "max_sequences": model.max_sequences,
        "max_context": model.max_context,
        "chunk": model.prefill_chunk,
        "top_k": model.candidates,
    }
    if model.engine == "vllm":
        arguments |= {"engine_args": model.engine_args, "adapter": model.adapter}
    return EngineSpec(model.engine, arguments)


def _model(checkpoint: Checkpoint, member: Member) -> Model:
    model = checkpoint.settings
    origin = f"{content_digest(model.source, revision=model.revision)} {checkpoint.dtype}"
    if model.adapter is not None:
        origin += f" {content_digest(model.adapter)}"
    return Model(member, checkpoint.tokenizer, checkpoint.stop_ids, origin, parents_of(model.source))


# By the names of the member and of the pivot.
Maps = dict[tuple[str, str], VocabMap]


def _maps(settings: Settings, checkpoints: dict[str, Checkpoint]) -> dict[str, Maps]:
    """By ensemble, the maps of those who need one into each possible pivot; learned where that will run."""
    cache = open_cache(settings.server)
    vocabularies = {name: checkpoint.vocabulary for name, checkpoint in checkpoints.items()}
    maps: dict[str, Maps] = {name: {} for name in settings.ensembles}
    for name, ensemble in settings.ensembles.items():
        for pivot in ensemble.pivots:
            # Learning takes float64, which mps does not have.
            device = device_here(settings.models[pivot]) or "cpu"
            device = device if device.startswith("cuda") else "cpu"
            around = ensemble.model_copy(update={"pivot": pivot})
            try:
                for member in members_to_map(around, vocabularies):
                    maps[name][member, pivot] = required_map(around, member, vocabularies, cache, device)
            except ConfigError as error:
                raise ConfigError(f"ensembles.{name}: {error}") from error
    return maps


def _ensemble(name: str, ensemble: EnsembleSettings, models: dict[str, Model], maps: Maps) -> Ensemble:
    members = {member: models[member] for member in ensemble.members}
    defaults, on_failure = ensemble.fusion, ensemble.on_member_failure

    def align(source: Model, target: Model) -> VocabMap:
        return maps[source.name, target.name]

    if ensemble.pivots != (ensemble.pivot,):
        return build_for_any_pivot(name, members, defaults=defaults, align=align, on_member_failure=on_failure)
    return build_ensemble(
        name, members, ensemble.pivot, defaults=defaults, align=align, on_member_failure=on_failure
    )


def _check_architecture(model: ModelSettings, config: Any) -> str | None:
    """Build the model without weights, which takes no memory, and see whether the engine can run it.

    Returns what keeps it from the fast path."""
    try:
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    except ValueError as error:
        raise ConfigError(
            f"{model.source} is a {config.model_type} model, which transformers cannot run as a causal language "
            "model; members have to be such."
        ) from error
    require_decoder(empty)
    context_length(empty, model.max_context)
    return why_not_packed(empty)


def _check_vocabulary(source: str, config: Any, tokenizer: Tokenizer) -> None:
    """Text must come to ids that the model has; control tokens beyond them (images, say) are never used."""
    size = config.get_text_config(decoder=True).vocab_size
    needed = 1 + max((i for i, surface in enumerate(tokenizer.surfaces) if surface is not None), default=0)
    if needed > size:
        raise ConfigError(
            f"{source} has a tokenizer of {needed} ids for a model of {size}; "
            "take the tokenizer that the model was trained with."
        )


def _dtype(model: ModelSettings, config: Any) -> str:
    """The dtype by name; `auto` is the checkpoint's own, float32 where it states none that an engine runs."""
    if model.dtype != "auto":
        return str(model.dtype)
    names = {dtype: name for name, dtype in DTYPES.items()}
    return names.get(config.dtype, "float32") if isinstance(config.dtype, torch.dtype) else "float32"
