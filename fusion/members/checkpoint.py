"""Checkpoints: reading their configuration, loading their weights, error messages about them."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import torch
import transformers
from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer

from alignment.errors import ConfigError, one_line
from alignment.files import INDEX, SINGLE, open_tensors
from alignment.learning.embeddings import empty_model
from fusion.members import gguf
from fusion.members.devices import parse_dtype
from fusion.options import SamplingParams

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOSPC}


def resolved(source: str, revision: str | None = None) -> tuple[str, str | None]:
    """A checkpoint and its revision, or, where it is a GGUF file, the folder that this is opened as.

    `source` names the file itself, on this machine or in a repository (`owner/name/FILE.gguf`), or the folder or
    repository whose only checkpoint it is. Raises ConfigError.
    """
    path = Path(source)
    if source.endswith(".gguf"):
        if path.is_file():
            return str(gguf.opened(path)), None
        if source.startswith((".", "/", "~")) or source.count("/") < 2:
            raise ConfigError(f"The GGUF file {source} does not exist: correct source.")
        owner, name, within = source.split("/", 2)
        return str(gguf.opened(_from_hub(f"{owner}/{name}", within, revision))), None
    if path.exists() or source.count("/") != 1 or source.startswith((".", "/", "~")):
        files = _local_files(source) if path.is_dir() and not (path / "config.json").exists() else {}
    else:
        files = {} if _has_config(source, revision) else _hub_files(source, revision)
    found = sorted(name for name in files if name.endswith(".gguf"))
    if not found or "config.json" in files:
        return source, revision
    if len(found) > 1:
        raise ConfigError(f"{source} holds several GGUF files: name one of them, as {source}/{found[0]}.")
    return resolved(f"{source}/{found[0]}", revision)


def read_config(source: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The checkpoint's configuration (a transformers PretrainedConfig). Raises ConfigError."""
    _read_json(source, "config.json", revision, required=True)
    try:
        with quiet():
            return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ConfigError(_explain(source, error)) from error


def load_model(
    source: str, *, dtype: torch.dtype, device: torch.device, revision: str | None, trust_remote_code: bool
) -> Any:
    """The checkpoint as a transformers causal language model in eval mode, with its eager attention.

    Only safetensors are read: a pickle can run code. Raises ConfigError.
    """
    config = read_config(source, revision=revision, trust_remote_code=trust_remote_code)
    weight_files(source, revision=revision)
    packed = Path(source, gguf.WEIGHTS)
    weights: dict[str, Any] = {"use_safetensors": True}
    if packed.exists():
        weights = {"gguf_file": str(packed), "config": config}
    try:
        model = loaded_whole(
            source,
            revision=revision,
            trust_remote_code=trust_remote_code,
            dtype=dtype,
            attn_implementation="eager",
            **weights,
        )
        if packed.exists():
            gguf.require_whole(model, Path(source))
        return model.eval().to(device)
    except ConfigError:
        raise
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{source}: the weights do not fit into the memory of {device}: take another device or dtype."
        ) from error
    except Exception as error:
        raise ConfigError(_explain(source, error)) from error


def loaded_whole(source: str, **options: Any) -> Any:
    """What `AutoModelForCausalLM.from_pretrained` makes of a checkpoint; ConfigError where it lacks weights."""
    with quiet():
        model, report = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options)
    if report["missing_keys"]:  # transformers would go on with random numbers
        missing = sorted(report["missing_keys"])
        raise ConfigError(
            f"{source} lacks {len(missing)} of the model's weights, such as {missing[0]}: copy it again."
        )
    return model


def model_without_weights(
    config: Any, source: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """The model of a configuration without weights, which takes no memory; None where transformers has none.

    Raises ConfigError where code of the checkpoint's own cannot run, such as for a package that is missing.
    """
    try:
        with quiet():
            return empty_model(config, source, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:
        if isinstance(error, ValueError) and "Unrecognized configuration class" in str(error):
            return None
        raise ConfigError(_explain(source, error)) from error


def weight_files(source: str, *, revision: str | None = None) -> dict[str, int]:
    """Names of the checkpoint's safetensors files, or of its GGUF file, and sizes in bytes. Raises ConfigError."""
    files = _local_files(source) if _is_folder(source) else _hub_files(source, revision)
    if gguf.WEIGHTS in files:
        return {gguf.WEIGHTS: files[gguf.WEIGHTS]}
    weights = {name: size for name, size in files.items() if name.endswith(".safetensors") and "/" not in name}
    if not weights:
        pickles = sorted(name for name in files if name.endswith(PICKLES))
        found = f"only {pickles[0]}, a pickle, which can run code and is never loaded" if pickles else "no weights"
        raise ConfigError(f"{source} has {found}; convert the checkpoint to safetensors.")
    if "adapter_config.json" in files and any(not name.startswith("adapter_model") for name in weights):
        raise ConfigError(
            f"{source} holds a LoRA adapter beside its weights, which may be merged into them already: remove "
            "adapter_config.json, or move the adapter to a folder of its own and name that as a view's adapter."
        )
    if SINGLE in weights:
        weights = {SINGLE: weights[SINGLE]}
    elif INDEX in files:
        weights = _listed(source, revision, weights)
    # Mistral's own format, beside which transformers' lies.
    weights = {name: size for name, size in weights.items() if not name.startswith("consolidated")} or weights
    if _is_folder(source):
        for name in weights:
            with open_tensors(Path(source, name)):  # which reads the header, and compares sizes
                pass
    return weights


def _listed(source: str, revision: str | None, weights: Mapping[str, int]) -> dict[str, int]:
    """The files that a checkpoint's index names, with their sizes where those are known. Raises ConfigError."""
    listed = _read_json(source, INDEX, revision, required=True).get("weight_map")
    names = set(listed.values()) if isinstance(listed, dict) else set()
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{source} has an index without a weight_map of names; copy {INDEX} again.")
    for name in sorted(names):
        # transformers would read whatever is named: a pickle, or a file of another folder.
        if not name.endswith(".safetensors") or "/" in name or "\\" in name:
            raise ConfigError(
                f"{source}'s index names {name!r:.80}, which is no safetensors file beside it; convert the "
                "checkpoint to safetensors."
            )
        if name not in weights and _is_folder(source):
            raise ConfigError(f"{source} lacks {name}, which its index names: copy it again.")
    return {name: weights.get(name, 0) for name in sorted(names)}


def listed_stops(source: str, revision: str | None = None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that eos_token_id lists in generation_config.json, and those in config.json. Raises ConfigError."""
    generation = _read_json(source, "generation_config.json", revision, required=False)
    configuration = _read_json(source, "config.json", revision, required=True)
    text = configuration.get("text_config")
    inner = text if isinstance(text, dict) else {}
    return _ids(generation.get("eos_token_id")), _ids(configuration.get("eos_token_id", inner.get("eos_token_id")))


def listed_sampling(source: str, revision: str | None = None) -> dict[str, float]:
    """The sampling options of generation_config.json, by the names of `SamplingParams`. Raises ConfigError.

    A value outside the bounds of its option is left out.
    """
    hints = get_type_hints(SamplingParams, include_extras=True)
    generation = _read_json(source, "generation_config.json", revision, required=False)
    found: dict[str, float] = {}
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty"):
        value, [bounds] = generation.get(name), hints[name].__metadata__
        highest = bounds.le if bounds.lt is None else bounds.lt - 1
        if isinstance(value, int | float) and not isinstance(value, bool) and bounds.ge <= value <= highest:
            found[name] = int(value) if name == "top_k" else float(value)
    return found


def _ids(value: object) -> tuple[int, ...]:
    """A field that holds an id, several or none."""
    values = value if isinstance(value, list) else [value]
    return tuple(id for id in values if isinstance(id, int))


def estimate(
    source: str, dtype: str, cache_tokens: int, revision: str | None = None, *, trust_remote_code: bool = False
) -> tuple[int, int]:
    """Bytes of the weights in `dtype` and of a cache of `cache_tokens`, without loading anything.

    The weights are counted as the files are, rescaled from the dtype that the configuration states; those of a
    GGUF file by their number, since they are dequantised.
    """
    config = read_config(source, revision=revision, trust_remote_code=trust_remote_code)
    width = parse_dtype(dtype).itemsize
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    files = weight_files(source, revision=revision)
    count = gguf.numbers(Path(source)) if gguf.WEIGHTS in files else sum(files.values()) // stored.itemsize
    return count * width, _values_per_token(config) * cache_tokens * width


def _values_per_token(config: Any) -> int:
    """The number of values in a token's keys and values over all layers; other layers' states are not counted."""
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_attention_heads", None)
    layers = sum(isinstance(layer, DynamicLayer) for layer in DynamicCache(config=config).layers)
    if not heads or not layers:
        return 0
    if getattr(text, "qk_nope_head_dim", None):  # latent attention is cached expanded
        return layers * int(heads * (text.qk_nope_head_dim + text.qk_rope_head_dim + text.v_head_dim))
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        heads_cached = 1
    else:
        heads_cached = getattr(text, "num_key_value_heads", None) or getattr(text, "num_kv_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return 2 * layers * int(heads_cached) * int(head_dim)


def _is_folder(source: str) -> bool:
    """Return whether `source` names a folder, not a repository of the hub. Raises ConfigError if it is missing."""
    if Path(source).is_dir():
        return True
    if Path(source).exists():
        raise ConfigError(f"{source} is a file; give the folder of the checkpoint.")
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise ConfigError(f"The checkpoint folder {source} does not exist: correct source.")
    return False


def _local_files(source: str) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in Path(source).iterdir() if path.is_file()}


def _hub_files(source: str, revision: str | None) -> dict[str, int]:
    cached = try_to_load_from_cache(source, "config.json", revision=revision)
    if isinstance(cached, str):
        files = _local_files(str(Path(cached).parent))
        if any(name.endswith(".safetensors") for name in files):
            return files
    try:
        info = HfApi().model_info(source, revision=revision, files_metadata=True)
    except (HfHubHTTPError, OSError) as error:
        raise ConfigError(_explain(source, error)) from error
    return {file.rfilename: file.size or 0 for file in info.siblings or []}


def _has_config(source: str, revision: str | None) -> bool:
    """Return whether a repository has a config.json; True where that cannot be found out."""
    try:
        hf_hub_download(source, "config.json", revision=revision)
    except EntryNotFoundError as error:
        return isinstance(error, LocalEntryNotFoundError)
    except (HfHubHTTPError, OSError, ValueError):
        pass
    return True


def _from_hub(source: str, name: str, revision: str | None) -> Path:
    """A file of a repository. Raises ConfigError."""
    try:
        return Path(hf_hub_download(source, name, revision=revision))
    except (EntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise ConfigError(_explain(source, error)) from error


def _read_json(source: str, name: str, revision: str | None, *, required: bool) -> dict[str, Any]:
    """A JSON file of the checkpoint; {} where it is absent and not required."""
    if _is_folder(source):
        path = Path(source) / name
    else:
        try:
            path = Path(hf_hub_download(source, name, revision=revision))
        except (EntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
            if required or not isinstance(error, EntryNotFoundError):
                raise ConfigError(_explain(source, error)) from error
            return {}
    if not path.is_file():
        if required:
            raise ConfigError(f"{source} has no {name}; give the folder that save_pretrained wrote.")
        return {}
    return json_object(path, source)


def json_object(path: Path, source: str) -> dict[str, Any]:
    """The object that a file of a checkpoint holds. ConfigError for anything else."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{source}: {path.name} is not valid JSON ({error}): copy it again.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: {path.name} is not a JSON object: copy it again.")
    return content


def _explain(source: str, error: Exception) -> str:
    """One sentence for what transformers or the hub raised."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in UNWRITABLE and error.filename and not _is_folder(source):
        return (
            f"{source} cannot be kept in {error.filename} ({error.strerror or error}): make the cache of "
            "checkpoints writable for this user, or set HF_HOME to another folder."
        )
    if isinstance(error, GatedRepoError):
        return f"{source} is gated on the Hugging Face hub; accept its terms there and set HF_TOKEN."
    if isinstance(error, RevisionNotFoundError):
        return f"{source} has no such revision on the Hugging Face hub; check revision."
    if isinstance(error, RepositoryNotFoundError):
        return f"{source} is no folder here and no model of the Hugging Face hub; check the name, or set HF_TOKEN."
    if "trust_remote_code" in text:
        return f"{source} needs code of its own to run; set trust_remote_code: true if you trust its author."
    if isinstance(error, HfHubHTTPError | LocalEntryNotFoundError) or "huggingface.co" in text:
        return f"{source} is no folder here and not in reach on the Hugging Face hub; check name and network."
    if "Unrecognized configuration class" in text:
        return f"{source} is not a causal language model that transformers can run; choose another checkpoint."
    if "model type" in text or "Unrecognized model" in text:
        return (
            f"{source}: transformers {transformers.__version__} does not know this architecture; "
            "choose another checkpoint."
        )
    return f"{source} cannot be loaded: {one_line(text, 300)}."


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing warnings and progress bars over the server's own output."""
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
