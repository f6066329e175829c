"""Architectures: the forward path that one allows, and its context length."""

from __future__ import annotations

import inspect
import sys
from importlib.util import find_spec
from typing import Any

from alignment.errors import ConfigError
from fusion.members.checkpoint import model_without_weights

_LAYER_TYPES = {"full_attention", "sliding_attention"}
_SCALING = {"linear", "yarn"}
# Packages that transformers needs for weights that are stored quantised, and what installs them.
_EXTRA = "'tutti-server[quantized]'"
_PACKAGES = {
    "fp8": (("accelerate",), _EXTRA),
    "mxfp4": (("accelerate",), _EXTRA),
    "compressed-tensors": (("compressed_tensors", "accelerate"), _EXTRA),
    "bitsandbytes": (("bitsandbytes", "accelerate"), "bitsandbytes accelerate"),
    "gptq": (("optimum", "gptqmodel"), "optimum gptqmodel"),
    "awq": (("gptqmodel", "accelerate"), "gptqmodel accelerate"),
    "torchao": (("torchao",), "torchao"),
}
_LIMITS = ("max_position_embeddings", "max_seq_len", "context_length")  # one meaning, as architectures call it


def examine(
    config: Any, source: str, *, revision: str | None, trust_remote_code: bool, max_context: int | None
) -> str | None:
    """Build a checkpoint's model without weights, which takes no memory, and see whether it can run.

    Returns what keeps it from the fast path. Raises ConfigError for an architecture that cannot run.
    """
    _require_packages(config, source)
    empty = model_without_weights(config, source, revision=revision, trust_remote_code=trust_remote_code)
    if empty is None:
        raise ConfigError(
            f"{source} is a {config.model_type} model, which transformers cannot run as a causal language "
            "model; members have to be such."
        )
    require_decoder(empty)
    context_length(empty, max_context)
    return why_not_packed(empty)


def _require_packages(config: Any, source: str) -> None:
    """Raise ConfigError, with how to get it, where a package is missing for weights that are quantised."""
    stated = getattr(config, "quantization_config", None)
    method = stated.get("quant_method") if isinstance(stated, dict) else getattr(stated, "quant_method", None)
    packages, install = _PACKAGES.get(str(method), ((), ""))
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{source} is quantised with {method}, for which the transformers engine needs "
            f"{' and '.join(missing)}: pip install {install}, or use the vllm engine."
        )


def require_decoder(model: Any) -> None:
    """Raise ConfigError, naming the architecture, for a model that is not a causal language model."""
    if model.config.is_encoder_decoder:
        raise unsupported(model, "it is an encoder-decoder")


def why_not_packed(model: Any) -> str | None:
    """Return the reason why a model cannot take the packed path, as far as is known before a try; None for none.

    On that path the cache keeps only keys and values per token, and attention is replaced.
    """
    text = model.config.get_text_config(decoder=True)
    others = sorted(set(getattr(text, "layer_types", None) or ()) - _LAYER_TYPES)
    if model._is_stateful:
        return "its layers keep a state"
    if others:
        return f"it has layers of kind {', '.join(others)}"
    if getattr(text, "attention_chunk_size", None):
        return "it attends in chunks"
    if not model.is_backend_compatible():
        return "its attention cannot be replaced"
    if _has_unlike_windows(model, text):
        return "its sliding window is not in both mask and attention"
    if any(name.endswith(".sinks") for name, _ in model.named_parameters()):
        return "its attention has sinks"
    return None


def takes_no_padding(model: Any) -> bool:
    """Return whether padding on the left would change what follows it, though it is masked.

    Llama 4 scales queries by their positions, from 8,192 on, and takes these from the length of the cache.
    """
    return any(getattr(module, "attn_temperature_tuning", False) for module in model.modules())


def _attention(model: Any) -> set[Any]:
    """The classes of attention that have a place among the layers; that of a tower for images is not replaced."""
    placed = (module for module in model.modules() if getattr(module, "layer_idx", None) is not None)
    return {type(module) for module in placed if type(module).__name__.endswith("Attention")}


def _has_unlike_windows(model: Any, text: Any) -> bool:
    """Return whether there is a sliding window of which only one of mask and attention is told.

    Attention is told by its argument, which is all that the packed path has; models' own masks count else.
    """
    if not getattr(text, "sliding_window", None) or getattr(text, "use_sliding_window", True) is False:
        return False
    told = ["sliding_window" in inspect.getsource(kind.forward) for kind in _attention(model)]
    masked = "sliding_window_causal_mask" in inspect.getsource(sys.modules[type(model).__module__])
    return not masked or not all(told)


def unsupported(model: Any, reason: str) -> ConfigError:
    """The error that says why an architecture cannot run."""
    name = type(model).__name__
    return ConfigError(f"The transformers engine cannot run {name}: {reason}. Choose another checkpoint.")


def context_length(model: Any, asked: int | None) -> int | None:
    """Tokens per sequence: `asked`, or all that the model was made for; None where nothing says.

    Models without a limit of their own are those that have no table of positions: a bias by distance, a state.
    Raises ConfigError where more is asked for than there is.
    """
    text = model.config.get_text_config(decoder=True)
    stated = (getattr(text, name, None) for name in _LIMITS)
    made_for: int | None = next((limit for limit in stated if isinstance(limit, int) and limit > 0), None)
    rope = getattr(text, "rope_parameters", None) or {}
    if made_for is not None:
        made_for = _scaled(rope, made_for)
    if rope.get("rope_type") == "longrope":
        # Beyond it, this encoding changes the frequencies of a whole forward pass by its longest row, and
        # what is already cached does not follow. So does dynamic scaling, beyond the length before scaling.
        made_for = rope["original_max_position_embeddings"]
    if asked is not None and made_for is not None and asked > made_for:
        raise ConfigError(
            f"max_context {asked} is more than the {made_for} tokens that {type(model).__name__} can serve: "
            "lower it."
        )
    return asked or made_for


def _scaled(rope: dict[str, Any], made_for: int) -> int:
    """The tokens that rotary positions scaled by a factor reach; `made_for` where they are not scaled.

    Qwen documents YaRN with `max_position_embeddings` left at the length before scaling; others state the length
    after it. Parameters by kind of layer reach as far as the layers that are scaled least. The scaling of Llama 3
    is no promise of length: 32 times 8192 stands beside 131072.
    """
    if rope and all(isinstance(value, dict) for value in rope.values()):
        return min(_scaled(value, made_for) for value in rope.values())
    if rope.get("rope_type") not in _SCALING:
        return made_for
    original = rope.get("original_max_position_embeddings") or made_for
    return max(made_for, int(original * (rope.get("factor") or 1)))
