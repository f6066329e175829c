"""The embedding tables of a checkpoint, read from its safetensors files without loading the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignment.errors import ConfigError, one_line
from alignment.files import INDEX, SINGLE, open_tensors

Which = Literal["input", "output"]
_CHUNK = 1 << 24  # numbers read at a time


@dataclass(frozen=True, slots=True)
class EmbeddingTable:
    """An embedding table: tensor `name` of `file`, of `shape` (V, d), stored as `dtype` ("BF16", "F32", ...)."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, int]

    def read(self) -> NDArray[np.float32]:
        """The table [V, d] float32. Raises ConfigError where the file is damaged."""
        table = np.empty(self.shape, np.float32)
        row = 0
        for chunk in self._chunks():
            table[row : row + len(chunk)] = chunk.float().numpy()
            row += len(chunk)
        return table

    def fingerprint(self) -> str:
        """sha256 over dtype, shape and bytes of the table as it is stored. Raises ConfigError as `read`."""
        digest = hashlib.sha256(f"{self.dtype} {self.shape[0]} {self.shape[1]} ".encode())
        for chunk in self._chunks():
            digest.update(chunk.view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _chunks(self) -> Iterator[Tensor]:
        """The table by rows, as stored."""
        step = max(1, _CHUNK // self.shape[1])
        with open_tensors(self.file) as file:
            table = file.get_slice(self.name)
            for start in range(0, self.shape[0], step):
                yield table[start : start + step]


def find_table(
    source: str, which: Which, *, revision: str | None = None, trust_remote_code: bool = False
) -> EmbeddingTable:
    """Find the input embeddings, or the output head, of a folder or hub id.

    The architecture says what the table is called: the model is built without memory for its weights (on torch's
    meta device) and asked. A head that is tied to the input embeddings is the input table.

    Raises:
        ConfigError: there is no such checkpoint, it has no safetensors, or no table of the shape that its
            configuration states.
    """
    model = _architecture(source, revision, trust_remote_code)
    named = _name_and_shape(model, which)
    if named is None:
        raise ConfigError(f"The architecture of {source} has no {which} embeddings: configure the other table.")
    name, shape = named
    files = _files_of(source, revision)
    stored = _stored_name(model, name, files)
    if stored is None:
        raise ConfigError(
            f"The weights of {source} have no tensor {name}, which is the {which} table of its architecture: "
            "check that all files of the checkpoint are there."
        )
    file = _path(source, files[stored], revision)
    if file is None:
        raise ConfigError(f"The checkpoint {source} lacks its file {files[stored]}: download it again.")
    with open_tensors(file) as opened:
        part = opened.get_slice(stored)
        found, dtype = tuple(part.get_shape()), part.get_dtype()
    if found != shape or dtype not in ("F64", "F32", "F16", "BF16"):
        raise ConfigError(
            f"The {which} embeddings {stored} of {source} are {dtype} of shape {found}, and its configuration "
            f"states floating point numbers of shape {shape}: use the unquantised checkpoint."
        )
    return EmbeddingTable(file, stored, dtype, shape)


def empty_model(config: Any, source: str, *, revision: str | None, trust_remote_code: bool) -> Any:
    """The causal language model of a checkpoint's configuration, without memory for its weights.

    Code of the checkpoint's own is that of `revision`, which `from_config` would not know by itself. Raises
    whatever transformers and that code do.
    """
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {}
    reference = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM", "")
    registered = AutoModelForCausalLM._model_mapping.get(type(config), None)
    is_looked_up = registered is None or registered.__module__.startswith("transformers.")
    is_its_own = bool(reference) and reference.rpartition("--")[0] in ("", source)
    if trust_remote_code and revision is not None and is_looked_up and is_its_own:
        options["code_revision"] = revision
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, **options)


def _architecture(source: str, revision: str | None, trust_remote_code: bool) -> Any:
    """The model of a checkpoint, without memory for its weights."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
        model = empty_model(config, source, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # the library raises everything from OSError to KeyError here
        reason = one_line(error)
        raise ConfigError(
            f"The architecture of {source} cannot be told from its config.json ({reason}): give a folder with a "
            "causal language model."
        ) from error
    model.tie_weights()
    return model


def _name_and_shape(model: Any, which: Which) -> tuple[str, tuple[int, int]] | None:
    """The table's name in the model, and its shape."""
    layer = model.get_input_embeddings() if which == "input" else model.get_output_embeddings()
    weight: Tensor | None = getattr(layer, "weight", None)
    for name, parameter in model.named_parameters():
        if weight is not None and parameter is weight:
            return name, (parameter.shape[0], parameter.shape[1])
    return None


def _stored_name(model: Any, name: str, stored: Iterable[str]) -> str | None:
    """The tensor that transformers loads as `name`.

    Files may leave out the prefix of the model with a head (`wte.weight`), have another one, or a name of old
    (`embed_out.weight`); its loader knows them all.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if not isinstance(transform, WeightRenaming)]
    known = model.state_dict()
    for key in stored:
        if rename_source_key(key, renamings, converters, model.base_model_prefix, known)[0] == name:
            return key
    return None


def _files_of(source: str, revision: str | None) -> dict[str, str]:
    """The file that each tensor of the checkpoint is in."""
    if (single := _path(source, SINGLE, revision)) is not None:
        with open_tensors(single) as file:
            return dict.fromkeys(file.keys(), SINGLE)
    if (index := _path(source, INDEX, revision)) is not None:
        try:
            return dict(json.loads(index.read_text())["weight_map"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{index} is damaged ({error}); copy it again.") from error
    if Path(source).is_dir() and any(Path(source).glob("*.gguf")):
        raise ConfigError(
            f"The weights of {source} are a GGUF file, and embeddings are read from safetensors alone: take a "
            "method that needs none, such as spelled, or the original checkpoint."
        )
    if not Path(source).is_dir():
        _require_reach(source, revision)
    raise ConfigError(
        f"The checkpoint {source} has no safetensors weights, and pickles are never loaded: convert it to "
        "safetensors."
    )


def _require_reach(source: str, revision: str | None) -> None:
    """Raise ConfigError where the hub does not say what files the checkpoint has."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(source, revision=revision)
    except Exception as error:  # of the hub's, of httpx's and the system's
        raise ConfigError(
            f"The weights of {source} are not on this machine, and could not be fetched from the model hub "
            f"({one_line(error)}): check the network, or take a method that needs none, such as spelled."
        ) from error


def _path(source: str, name: str, revision: str | None) -> Path | None:
    """A file of a folder, or of a hub id fetched if need be; None where there is none."""
    if Path(source).is_dir():
        path = Path(source, name)
        return path if path.is_file() else None
    from transformers.utils import cached_file

    found = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None
