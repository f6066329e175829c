"""A random model of each architecture, a few thousand parameters large, by the path that it takes."""

import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM
from transformers import PreTrainedModel as Model

_SIZES = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LONG = {**_SIZES, "max_position_embeddings": 256}
_GROUPED = {**_LONG, "num_key_value_heads": 2}
_MOE = {**_GROUPED, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
_GPT = {"vocab_size": 120, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "bos_token_id": 1}
_MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
_DECODER = {
    "vocab_size": 120,
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 256,
    "init_std": 0.2,
}

PACKED = {
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 8},
    "mixtral": {**_GROUPED, "num_local_experts": 4},
    "qwen2": _GROUPED,
    "qwen2_moe": {**_MOE, "num_experts": 4, "shared_expert_intermediate_size": 24},
    "qwen3": {**_GROUPED, "head_dim": 8},
    "qwen3_moe": {**_MOE, "num_experts": 4, "head_dim": 8},
    "gemma": {**_GROUPED, "head_dim": 8},
    "gemma2": {**_GROUPED, "head_dim": 8, "sliding_window": 8},
    "gemma3_text": {**_GROUPED, "head_dim": 8, "sliding_window": 8},
    "gpt2": _GPT,
    "gpt_neox": _LONG,
    "gpt_bigcode": _GPT,
    "opt": {**_LONG, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi": _GROUPED,
    "phi3": _GROUPED,
    "olmo": _GROUPED,
    "olmo2": _GROUPED,
    "cohere": _GROUPED,
    "cohere2": {**_GROUPED, "sliding_window": 8},
    "granite": _GROUPED,
    "starcoder2": {**_GROUPED, "sliding_window": 8},
    "deepseek_v3": {
        **_MOE, **_MLA, "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "smollm3": _GROUPED,
    "ctrl": {"vocab_size": 120, "n_positions": 256, "n_embd": 32, "dff": 48, "n_layer": 2, "n_head": 4},
}  # fmt: skip

PADDED = {
    "bloom": {"vocab_size": 120, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
    "falcon": {**_LONG, "alibi": False},
    "falcon/alibi": {**_LONG, "alibi": True, "new_decoder_architecture": False},
    "mpt": {"vocab_size": 120, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    "gptj": {**_GPT, "rotary_dim": 4},
    "gpt_neo": {
        "vocab_size": 120, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 256,
        "attention_types": [[["global", "local"], 1]], "window_size": 8, "intermediate_size": 48,
    },
    "codegen": {**_GPT, "rotary_dim": 4},
    "stablelm": _GROUPED,
    "biogpt": _LONG,
    "diffllama": _GROUPED,
    "doge": _GROUPED,
    "gpt_oss": {**_GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
}  # fmt: skip

ONE_BY_ONE = {
    "bart": _DECODER,
    "llama4_text": {
        **_GROUPED,
        "head_dim": 8,
        "attention_chunk_size": 8,
        "num_local_experts": 2,
        "intermediate_size_mlp": 48,
        "num_hidden_layers": 4,
        "floor_scale": 8,
    },
    "camembert": {**_LONG, "max_position_embeddings": 258, "is_decoder": True, "type_vocab_size": 1},
}

_MAMBA = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2}

WITH_STATES = {
    "mamba2": {
        **_SIZES, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8,
    },
    "bamba": {
        **_GROUPED, **_MAMBA, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8,
        "attn_layer_indices": [1],
    },
    "falcon_h1": {
        **_GROUPED, **_MAMBA, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_ssm": 64,
        "mamba_chunk_size": 8,
    },
    "qwen3_next": {
        **_MOE, "num_hidden_layers": 4, "head_dim": 8, "num_experts": 4, "shared_expert_intermediate_size": 24,
        "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8, "initializer_range": 0.1,
    },
    "qwen3_5_text": {
        **_GROUPED, "num_hidden_layers": 4, "head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "initializer_range": 0.1,
    },
    "lfm2": {**_GROUPED, "layer_types": ["conv", "full_attention"]},
    # transformers clamps time steps from below in prompts, not in decoding: to a value that makes no difference
    "zamba2": {
        "time_step_min": 1e-8,
        **_GROUPED, **_MAMBA, "n_mamba_heads": 8, "mamba_headdim": 8, "mamba_ngroups": 1, "num_hidden_layers": 4,
        "chunk_size": 8, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_mem_blocks": 1,
    },
}  # fmt: skip

TOKEN_BY_TOKEN = {
    "mamba": {**_SIZES, "state_size": 8},
    "falcon_mamba": {**_SIZES, "state_size": 8},
    "jamba": {
        **_GROUPED, **_MAMBA, "mamba_dt_rank": 4, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
        "num_hidden_layers": 4, "use_mamba_kernels": False,
    },
    "zamba": {
        **_GROUPED, **_MAMBA, "mamba_dt_rank": 4, "n_mamba_heads": 2, "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "use_mamba_kernels": False,
    },
}  # fmt: skip

OWN_CACHE = {
    "deepseek_v32": {
        **_MOE, **_MLA, "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 1, "index_topk": 128, "index_n_heads": 2, "index_head_dim": 8,
    },
    "rwkv": {**_SIZES, "context_length": 256, "attention_hidden_size": 32},
}  # fmt: skip

OWN_CACHE_TOKEN_BY_TOKEN = {
    "minimax": {
        **_GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "block_size": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
}  # fmt: skip

WITHOUT_CACHE = {
    "xlstm": {**_SIZES, "num_heads": 4, "num_blocks": 2, "qk_dim_factor": 0.5},
    "recurrent_gemma": {**_GROUPED, "attention_window_size": 8, "lru_width": 32, "num_hidden_layers": 3},
}

if Version(transformers.__version__) >= Version("5.24"):  # these take its attention interface
    PACKED |= {name: PADDED.pop(name) for name in ("gptj", "codegen")}


OF_PATH = {
    "packed": PACKED,
    "padded": PADDED,
    "one by one": ONE_BY_ONE,
    "with states": WITH_STATES,
    "with states, token by token": TOKEN_BY_TOKEN,
    "over its own cache": OWN_CACHE,
    "over its own cache, token by token": OWN_CACHE_TOKEN_BY_TOKEN,
    "without cache": WITHOUT_CACHE,
}


def build(name: str, seed: int = 0, **more: int) -> Model:
    """The model of a name above; what follows a slash only tells two of a kind apart. `more` are other sizes."""
    sizes = {key: one for names in OF_PATH.values() for key, one in names.items()}[name]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(name.split("/")[0], **(sizes | more))
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
