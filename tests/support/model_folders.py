"""A folder with two tiny models and a configuration, and the commands run on it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from server.cli import app

REPOSITORY = Path(__file__).parents[2]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(
        app, [str(argument) for argument in arguments], env={"COLUMNS": "150", **(env or {})}
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def save_tokenizer(folder: Path, extra: list[str]) -> int:
    """A byte-level tokenizer of the 256 bytes, an end token, and some longer tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(word[:-1], word[-1]) for word in extra]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *extra, "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return len(vocabulary)


def save_site(folder: Path) -> None:
    """Two models of random weights, `ada` and `ben`, an ensemble of both, and questions."""
    torch.manual_seed(2)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    size = save_tokenizer(folder / "ada", ["th", "the"])
    ids = {"bos_token_id": None, "eos_token_id": size - 1, "pad_token_id": None}
    LlamaForCausalLM(LlamaConfig(vocab_size=size, **shape, **ids)).save_pretrained(folder / "ada")
    size = save_tokenizer(folder / "ben", ["an", "and", "th"])
    ids["eos_token_id"] = size - 1
    GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=size, **shape, **ids)).save_pretrained(folder / "ben")
    (folder / "tutti.yaml").write_text(
        "models:\n"
        "  ada: {source: ada, cache_tokens: 2048}\n"
        "  ben: {source: ben, cache_tokens: 2048, dtype: float32}\n"
        "ensembles:\n"
        "  both: {members: [ada, ben], pivot: ada, weights: {ada: 3, ben: 1}, filter_top: 5}\n"
        "server: {port: 0}\n"
        "evaluation: {tasks: [tasks.jsonl]}\n"
    )
    rows = [{"id": str(n), "task": "sums", "prompt": f"{n}+{n}", "reference": str(2 * n)} for n in range(3)]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
