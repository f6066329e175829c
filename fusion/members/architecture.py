"""Which architectures the packed forward pass can run, and how many tokens of context they have."""

from __future__ import annotations

from typing import Any

from alignment.errors import ConfigError

_LAYER_TYPES = {"full_attention", "sliding_attention"}


def require_supported(model: Any) -> None:
    """Raise ConfigError, naming the architecture, for what is known not to work before it is tried.

    A cache that keeps keys and values per token, and nothing else, is what makes rollback a length.
    """
    config = model.config
    text = config.get_text_config(decoder=True)
    others = sorted(set(getattr(text, "layer_types", None) or ()) - _LAYER_TYPES)
    reason = None
    if config.is_encoder_decoder:
        reason = "it is an encoder-decoder"
    elif model._is_stateful:
        reason = "its layers keep a state that cannot be rolled back"
    elif others:
        reason = f"it has layers of kind {', '.join(others)}"
    elif getattr(text, "attention_chunk_size", None):
        reason = "it attends in chunks"
    elif not model.is_backend_compatible():
        reason = "its attention cannot be replaced (no _supports_attention_backend)"
    if reason is not None:
        raise unsupported(model, reason)


def unsupported(model: Any, reason: str) -> ConfigError:
    """The error that says why an architecture cannot run."""
    name = type(model).__name__
    return ConfigError(f"The transformers engine cannot run {name}: {reason}. Choose another checkpoint.")


def context_length(model: Any, asked: int | None) -> int:
    """Tokens per sequence: `asked`, or all that the model was made for. Raises ConfigError."""
    text = model.config.get_text_config(decoder=True)
    made_for: int | None = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        # Beyond it, this encoding changes the frequencies of a whole forward pass by its longest row, and
        # what is already cached does not follow.
        made_for = rope["original_max_position_embeddings"]
    if asked is None and made_for is None:
        raise ConfigError(f"{type(model).__name__} states no max_position_embeddings; set max_context.")
    if asked is not None and made_for is not None and asked > made_for:
        raise ConfigError(
            f"max_context {asked} is more than the {made_for} tokens that {type(model).__name__} can serve."
        )
    return asked or made_for or 0
