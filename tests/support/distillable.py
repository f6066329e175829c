"""Tiny chat models, conversations and settings to distil them with, in a folder of their own."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fusion.distill.fusechat.settings import Align, FuseChat, Merge, Represent, Target
from fusion.distill.training.settings import Data, Source, Train

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WORDS = ("the", "cat", "house", "and", "red", "blue", "sees", "runs", "here", "there")
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
    "max_position_embeddings": 256,
}
TRAIN = Train(
    learning_rate=1e-3, steps=6, batch=4, accumulate=2, log_every=1, check_every=2, patience=None, lm_weight=0.5
)


def save_model(folder: Path, merges: list[str], seed: int, *, neox: bool = False) -> Source:
    """A random model whose tokens are bytes and some longer ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<end>", "<user>", "<assistant>", "<system>"]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *merges])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(word[:-1], word[-1]) for word in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", chat_template=TEMPLATE)
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    ids: dict[str, Any] = {"eos_token_id": fast.eos_token_id, "bos_token_id": None, "pad_token_id": None}
    if neox:
        model: Any = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=len(fast), **SHAPE, **ids))
    else:
        config = LlamaConfig(vocab_size=len(fast), tie_word_embeddings=True, **SHAPE, **ids)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return Source(str(folder), cache_tokens=1024, max_sequences=8)


def save_texts(path: Path, count: int = 24) -> None:
    """Conversations of one or two exchanges."""
    rng = random.Random(count)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 5)))

    with path.open("w") as file:
        for _ in range(count):
            turns = [role for _ in range(rng.randint(1, 2)) for role in ("user", "assistant")]
            file.write(json.dumps({"messages": [{"role": role, "content": text()} for role in turns]}) + "\n")


def save_site(folder: Path) -> FuseChat:
    """Three models, texts, and a distillation of a few seconds."""
    base = save_model(folder / "ada", ["th", "the", "ca", "cat"], 1)
    sources = {
        "ben": save_model(folder / "ben", ["he", "an", "and", "re", "red"], 2, neox=True),
        "eve": save_model(folder / "eve", ["th", "the", "ho", "hou", "ru", "run"], 3),
    }
    save_texts(folder / "texts.jsonl")
    return FuseChat(
        name="fused",
        base=base,
        sources=sources,
        targets={name: Target((name,)) for name in sources},
        data=Data((folder / "texts.jsonl",), held_out=0.2, max_length=128),
        work=folder / "work",
        out=folder / "out",
        represent=Represent(best=8, shard=10),
        align=Align(),
        train=TRAIN,
        merge=Merge(compare=("linear", "varm")),
    )


def moved(settings: FuseChat, name: str) -> FuseChat:
    """The same distillation with a work folder and a result of its own."""
    folder = settings.work.parent / name
    return replace(settings, work=folder / "work", out=folder / "out")


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
