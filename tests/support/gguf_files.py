"""GGUF files of small models, written as llama.cpp's converter lays them out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize
from transformers import PreTrainedConfig

LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write(
    path: Path,
    model: Any,
    backend: tokenizers.Tokenizer,
    *,
    pre: str | None = None,
    q8: bool = False,
    keys: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write a Llama or Qwen2 model with its tokenizer: byte-level, or with byte fallback where `pre` is None.

    `keys` are added, those that are None left out; so are `tensors`. With `q8` matrices are quantised to Q8_0.
    """
    config: PreTrainedConfig = model.config
    kind = config.model_type
    stated: dict[str, Any] = {
        f"{kind}.context_length": config.max_position_embeddings,
        f"{kind}.embedding_length": config.hidden_size,
        f"{kind}.block_count": config.num_hidden_layers,
        f"{kind}.feed_forward_length": config.intermediate_size,
        f"{kind}.attention.head_count": config.num_attention_heads,
        f"{kind}.attention.head_count_kv": config.num_key_value_heads,
        f"{kind}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{kind}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        f"{kind}.rope.dimension_count": config.hidden_size // config.num_attention_heads,
        f"{kind}.vocab_size": config.vocab_size,
        **vocabulary(backend, config.vocab_size, pre),
        **(keys or {}),
    }
    writer = GGUFWriter(path, kind)
    for name, value in stated.items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif value is not None:
            writer.add_array(name, value)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = weight.float().numpy()
        if kind == "llama" and ("q_proj" in name or "k_proj" in name):
            array = interleaved(
                array, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            )
        add(writer, named(name), np.ascontiguousarray(array), q8)
    for name, array in (tensors or {}).items():
        add(writer, name, array, False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer: GGUFWriter, name: str, array: np.ndarray, q8: bool) -> None:
    if q8 and array.ndim == 2:
        packed = quantize(array, GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, packed, raw_dtype=GGMLQuantizationType.Q8_0)
    else:
        writer.add_tensor(name, array)


def named(name: str) -> str:
    """The name of a weight of transformers' in a GGUF file."""
    stem, suffix = name.rsplit(".", 1)
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.{suffix}"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{LAYER[rest]}.{suffix}"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order of the rotary embedding of llama.cpp."""
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def vocabulary(backend: tokenizers.Tokenizer, size: int, pre: str | None) -> dict[str, Any]:
    pipeline = json.loads(backend.to_str())
    texts = {id: text for text, id in backend.get_vocab(with_added_tokens=True).items()}
    tokens = [texts.get(id, f"[PAD{id}]") for id in range(size)]
    added = {token["content"] for token in pipeline["added_tokens"]}
    special = {token["content"] for token in pipeline["added_tokens"] if token["special"]}
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in pipeline["model"]["merges"]]
    stated: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2" if pre else "llama",
        "tokenizer.ggml.pre": pre or "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [kind_of(text, special, added) for text in tokens],
        "tokenizer.ggml.eos_token_id": tokens.index(sorted(special)[0]) if special else 2,
    }
    if pre:
        return stated | {"tokenizer.ggml.merges": merges}
    # A vocabulary of sentencepiece has scores in the place of merges: the earlier a piece is merged, the higher.
    order = {"".join(merge.split(" ")): -float(rank) for rank, merge in reversed(list(enumerate(merges, start=1)))}
    scores = [order.get(text, -1e6) for text in tokens]
    return stated | {"tokenizer.ggml.scores": scores, "tokenizer.ggml.bos_token_id": 1}


def kind_of(text: str, special: set[str], added: set[str]) -> int:
    if text in added:
        return int(TokenType.CONTROL if text in special else TokenType.USER_DEFINED)
    if text.startswith("<0x") and len(text) == 6:
        return int(TokenType.BYTE)
    return int(TokenType.UNUSED if text.startswith("[PAD") else TokenType.NORMAL)


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    """[n, V] float32."""
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float()
