"""Checkpoints: everything of a model except its weights, read and checked before any weights are loaded."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

from alignment.errors import ConfigError
from alignment.methods.method import ModelVocabulary
from alignment.text.stops import ordered_stops
from alignment.text.tokenizer import Tokenizer
from fusion.assembly.members import device_here
from fusion.assembly.specs import BuildError, Ensembles, ModelSpec, named
from fusion.members.adapters import read_adapter, require_fits
from fusion.members.checkpoint import (
    listed_stops,
    model_without_weights,
    read_config,
    resolved,
    weight_files,
)
from fusion.members.devices import DTYPES
from fusion.members.registry import ENGINES, EngineSpec
from fusion.options import EngineOptions


@dataclass(frozen=True)
class Checkpoint:
    """Everything of a model except its weights.

    `source` and `revision` say what is loaded: those of `spec`, or the folder that a GGUF file is opened as.
    `dtype` is the resolved dtype, `config` the configuration as transformers reads it, `not_packed` the reason why
    the architecture cannot take the fast path, None where none is known.
    """

    name: str
    spec: ModelSpec
    source: str
    revision: str | None
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


def open_checkpoint(name: str, model: ModelSpec) -> Checkpoint:
    """Read and check everything of a checkpoint except its weights.

    Raises:
        ConfigError: the device, a file, the architecture or the tokenizer cannot be used; names the model.
    """
    trust = model.trust_remote_code
    with named("model", name):
        device_here(model)
        source, revision = resolved(model.source, model.revision)
        config = read_config(source, revision=revision, trust_remote_code=trust)
        not_packed = _examined(model, config, source, revision)
        if model.engine_args.get("load_format", "auto") in ("auto", "safetensors"):
            weight_files(source, revision=revision)
        vocabulary = read_vocabulary(
            source, revision=revision, trust_remote_code=trust, chat_template=model.chat_template
        )
        _check_vocabulary(source, config, vocabulary.tokenizer)
        return Checkpoint(name, model, source, revision, _dtype(model, config), config, not_packed, vocabulary)


def read_vocabulary(
    source: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
) -> ModelVocabulary:
    """The tokenizer of a checkpoint and its end tokens.

    Raises:
        ConfigError: there is no such checkpoint, its tokenizer cannot be used, or it has no end token.
    """
    tokenizer = Tokenizer.load(
        source, revision=revision, trust_remote_code=trust_remote_code, chat_template=chat_template
    )
    stops = ordered_stops(tokenizer, *listed_stops(source, revision))
    if not stops:
        raise ConfigError(f"{source} names no end token; set eos_token_id in its generation_config.json.")
    return ModelVocabulary(source, tokenizer, stops, revision, trust_remote_code)


def require_adapters(checkpoints: Mapping[str, Checkpoint], ensembles: Ensembles) -> dict[str, tuple[str, ...]]:
    """The folders of each model's adapters, its own and those of its views, compared with its layers.

    Raises:
        BuildError: one cannot be read, or is another model's; names the model, or the ensemble and the view.
    """
    found: dict[str, list[str]] = {name: [] for name in checkpoints}
    empty: dict[str, Any] = {}

    def check(model: str, folder: str, kind: Literal["model", "ensemble"], name: str, field: str) -> None:
        if folder in found[model]:
            return
        try:
            adapter = read_adapter(folder)
            if model not in empty:
                one = checkpoints[model]
                empty[model] = model_without_weights(
                    one.config, one.source, revision=one.revision, trust_remote_code=one.spec.trust_remote_code
                )
            if empty[model] is not None:
                require_fits(adapter, empty[model])
        except ConfigError as error:
            raise BuildError(kind, name, f"{field}: {error}") from error
        found[model].append(folder)

    for name, checkpoint in checkpoints.items():
        if checkpoint.spec.adapter is not None:
            check(name, checkpoint.spec.adapter, "model", name, "adapter")
    for name, ensemble in ensembles.items():
        for view, spec in ensemble.views.items():
            if spec.adapter is not None and spec.model in checkpoints:
                check(spec.model, spec.adapter, "ensemble", name, f"views.{view}.adapter")
    return {model: tuple(folders) for model, folders in found.items()}


def engine_spec(checkpoint: Checkpoint, adapters: Sequence[str] = ()) -> EngineSpec:
    """Return the specification that the model's engine is loaded from, on whatever host.

    `adapters` are folders, which name them too.
    """
    model = checkpoint.spec
    arguments: dict[str, Any] = {
        "source": checkpoint.source,
        "dtype": checkpoint.dtype,
        "device": model.device,
        "revision": checkpoint.revision,
        "trust_remote_code": model.trust_remote_code,
    }
    options = [field.name for field in fields(EngineOptions)]
    arguments |= {name: getattr(model, name) for name in (*options, *ENGINES[model.engine].options)}
    if adapters:
        arguments["adapters"] = {folder: folder for folder in adapters}
    return EngineSpec(model.engine, arguments)


def _examined(model: ModelSpec, config: Any, source: str, revision: str | None) -> str | None:
    """Return why an architecture cannot take its engine's fast path. Raises ConfigError for one it cannot run."""
    kind = ENGINES[model.engine]
    if kind.examine is None:
        return None
    examine = pkgutil.resolve_name(kind.examine)
    found: str | None = examine(
        config,
        source,
        revision=revision,
        trust_remote_code=model.trust_remote_code,
        max_context=model.max_context,
    )
    return found


def _check_vocabulary(source: str, config: Any, tokenizer: Tokenizer) -> None:
    """Raise ConfigError where text has ids that the model lacks; control tokens beyond them are never used."""
    size = config.get_text_config(decoder=True).vocab_size
    needed = 1 + max((i for i, surface in enumerate(tokenizer.surfaces) if surface is not None), default=0)
    if needed > size:
        raise ConfigError(
            f"{source} has a tokenizer of {needed} ids for a model of {size}; "
            "take the tokenizer that the model was trained with."
        )


def _dtype(model: ModelSpec, config: Any) -> str:
    """The dtype by name; `auto` is the checkpoint's own, float32 where it states none that an engine runs."""
    if model.dtype != "auto":
        return str(model.dtype)
    names = {dtype: name for name, dtype in DTYPES.items()}
    return names.get(config.dtype, "float32") if isinstance(config.dtype, torch.dtype) else "float32"
