"""Three random models of at least 30M (or 350M) parameters with tokenizers of their own, built on the spot.

The tokenizers are trained on one seeded corpus of invented words, so they overlap as real ones do: frequent
words are one token everywhere, rare ones are cut differently.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = ["<unk>", "<s>", "</s>"]
WORDS = 24_000


@cache
def invented_words(count: int = WORDS) -> list[str]:
    """`count` different pronounceable words, the same ones every time."""
    rng = np.random.default_rng(7)
    syllables = [a + v + e for a in "bcdfghjklmnprstvwz" for v in "aeiou" for e in ("", "n", "r", "s")]
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(rng.choice(syllables, size=rng.integers(1, 4)))] = None
    return list(words)


def corpus() -> list[str]:
    """Sentences in which words occur with Zipf's frequencies, every word a few times at least."""
    rng, words = np.random.default_rng(8), invented_words()
    ranks = np.minimum(rng.zipf(1.2, size=300_000) - 1, len(words) - 1)
    order = np.concatenate([ranks, *(rng.permutation(len(words)) for _ in range(3))])
    return [" ".join(words[i] for i in order[n : n + 12]) + "." for n in range(0, len(order), 12)]


SIZES = {"llama": 28_000, "qwen2": 24_000, "neox": 20_000}


def tokenizers(sizes: dict[str, int] = SIZES) -> dict[str, Tokenizer]:
    """Two byte-level BPEs with different rules and sizes, one in SentencePiece's manner with byte fallback."""
    text = corpus()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=sizes["llama"], special_tokens=SPECIALS, initial_alphabet=alphabet)
    )
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    pairs.decoder = decoders.ByteLevel()
    pairs.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=sizes["qwen2"], special_tokens=SPECIALS, initial_alphabet=alphabet)
    )
    piece = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    piece.normalizer = normalizers.Replace(" ", "▁")
    piece.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)]
    piece.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=sizes["neox"], special_tokens=[*SPECIALS, *byte_tokens])
    )
    return {"llama": words, "qwen2": pairs, "neox": without_special_bytes(piece)}


def without_special_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """The trainer can only add the byte tokens as special ones; SentencePiece's converters make them ordinary."""
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    data["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    data["pre_tokenizer"] = None
    data["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    return Tokenizer.from_str(json.dumps(data))


SMALL: dict[str, dict[str, int]] = {
    "llama": {
        "hidden_size": 448,
        "intermediate_size": 1216,
        "num_hidden_layers": 6,
        "num_attention_heads": 7,
        "num_key_value_heads": 7,
    },
    "qwen2": {
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
    "neox": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 5, "num_attention_heads": 8},
}
LARGE: dict[str, dict[str, int]] = {
    "llama": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
    "qwen2": {
        "hidden_size": 1024,
        "intermediate_size": 3328,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    },
    "neox": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
}
POSITIONS = 10240


def random_models(vocabularies: dict[str, int], shapes: dict[str, dict[str, int]]) -> dict[str, PreTrainedModel]:
    """One model per architecture, seeded; `vocabularies` are the numbers of tokens."""
    torch.manual_seed(0)
    common = {
        "max_position_embeddings": POSITIONS,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    kinds = {
        "llama": (LlamaForCausalLM, LlamaConfig),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config),
        "neox": (GPTNeoXForCausalLM, GPTNeoXConfig),
    }
    return {
        name: kind(config(vocab_size=vocabularies[name], **shapes[name], **common)).eval()
        for name, (kind, config) in kinds.items()
    }


def build(folder: Path, shapes: dict[str, dict[str, int]] = SMALL) -> dict[str, Path]:
    """Write the three checkpoints as Hugging Face folders; returns them by name."""
    built = tokenizers()
    checkpoints = random_models({name: one.get_vocab_size() for name, one in built.items()}, shapes)
    for name, model in checkpoints.items():
        model.save_pretrained(folder / name)
        PreTrainedTokenizerFast(
            tokenizer_object=built[name], bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        ).save_pretrained(folder / name)
    return {name: folder / name for name in checkpoints}


def prompt(words: int, seed: int) -> str:
    """A text of `words` invented words."""
    vocabulary = invented_words()
    rng = np.random.default_rng(seed)
    return " ".join(vocabulary[i] for i in np.minimum(rng.zipf(1.2, size=words) - 1, len(vocabulary) - 1))
