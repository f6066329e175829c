"""Random models of a few thousand parameters, peaked enough that a wrong mask or position shows."""

import random

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)
from transformers import PreTrainedModel as Model

from fusion.core import Advance, NextTokens
from fusion.members.engine import Engine

VOCABULARY = 300
EXACT = 1e-4  # nats

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**_SHAPE, num_key_value_heads=2),
    "qwen2": Qwen2Config(**_SHAPE, num_key_value_heads=1),
    "gpt_neox": GPTNeoXConfig(**_SHAPE),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=48,
        n_layer=2,
        n_head=4,
        n_positions=256,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "mistral": MistralConfig(**_SHAPE, num_key_value_heads=2, sliding_window=6),
    "gemma2": Gemma2Config(
        **_SHAPE,
        num_key_value_heads=2,
        head_dim=12,
        sliding_window=6,
        query_pre_attn_scalar=3,
        attn_logit_softcapping=2.0,
    ),
}


def build(config: PreTrainedConfig | str, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    config = CONFIGS[config] if isinstance(config, str) else config
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@torch.inference_mode()
def plain_logprobs(model: Model, ids: list[int]) -> torch.Tensor:
    """[len(ids), V] by a plain forward pass over the whole list."""
    return torch.log_softmax(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float(), -1)


def run(engine: Engine, *advances: Advance) -> dict[int, NextTokens]:
    """Step until everything is answered."""
    engine.add(list(advances))
    answers = {}
    while engine.has_work():
        answers |= {answer.sequence: answer for answer in engine.step()}
    return answers


def error_of(answer: NextTokens, expected: torch.Tensor) -> float:
    """The largest difference of an answer over the whole vocabulary from rows [n, V]."""
    told = torch.empty_like(expected).scatter_(
        1, torch.from_numpy(answer.ids).long(), torch.from_numpy(answer.logprobs)
    )
    return float((told - expected).abs().max())


def assert_agree(model: Model, engine: Engine, texts: dict[int, list[int]], rng: random.Random) -> None:
    """Give an engine these texts side by side, in pieces of any size with tokens taken back in between.

    All that is asked of it on the way is what the model says in a plain forward pass over the whole text.
    """
    whole = {sequence: plain_logprobs(model, text) for sequence, text in texts.items()}
    cached = dict.fromkeys(texts, 0)
    while any(cached[s] < len(texts[s]) for s in texts):
        advances = []
        for sequence, text in texts.items():
            keep = max(0, cached[sequence] - rng.choice((0, 0, 0, 1, 2, 9)))
            append = text[keep : keep + rng.choice((1, 1, 2, 3, 17, 40))]
            if append:
                score = rng.choice(("last", "appended", "all"))
                some = sorted(rng.sample(range(len(append) - 1), rng.randint(0, len(append) - 1)))
                advances.append(Advance(sequence, keep, append, score, rng.choice((None, some))))
                cached[sequence] = keep + len(append)
        answers = run(engine, *advances)
        for advance in advances:
            answer, end = answers[advance.sequence], advance.keep + len(advance.append)
            assert isinstance(answer, NextTokens)
            expected = whole[advance.sequence]
            scored = [advance.keep + index for index in advance.scored]
            listed = [*scored, end - 1] if advance.score == "all" else [end - 1]
            assert error_of(answer, expected[listed]) < EXACT
            if advance.score != "last":
                given = [expected[i, texts[advance.sequence][i + 1]] for i in scored]
                np.testing.assert_allclose(answer.appended_logprobs, given, atol=EXACT)
                assert answer.appended_logprobs.dtype == np.float32
            else:
                assert answer.appended_logprobs is None


SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

RANKS_AND_ALPHAS = {  # of a LoRA adapter whose layers have their own
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj", "down_proj"],
    "rank_pattern": {"v_proj": 2},
    "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 32, "down_proj": 1},
    "init_lora_weights": False,
}
