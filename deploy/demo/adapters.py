"""Training of three LoRA adapters over one model of the demo: `python -m deploy.demo.adapters`."""

import shutil
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated

import torch
import typer
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from deploy.demo.batches import batches, encode_chats
from deploy.demo.chats import ChatStream
from deploy.demo.learning import learn
from deploy.demo.members import LINGVO, MODELS

ADAPTERS = Path(__file__).parent / "adapters"
BASE = LINGVO
"""Translates well and knows little else; each adapter adds one thing and keeps the rest."""
BATCH_TOKENS = 2048
LORA = {"r": 32, "lora_alpha": 32, "target_modules": "all-linear"}

console = Console()


@dataclass(frozen=True)
class Adapter:
    """One adapter: the relative numbers of chats that it is trained on, and their length in all."""

    name: str
    shares: dict[str, float]
    tokens: int
    seed: int


# Each sees a little of the others' tasks, so that it is unsure there and leaves the last word to who knows.
ALL = {
    one.name: one
    for one in (
        Adapter(
            "sums",
            {"arithmetic": 80, "data_to_text": 2, "translation": 10, "commonsense": 6, "small_talk": 2},
            360_000,
            11,
        ),
        Adapter(
            "places",
            {"arithmetic": 8, "data_to_text": 70, "translation": 10, "commonsense": 10, "small_talk": 2},
            400_000,
            12,
        ),
        Adapter(
            "facts",
            {"arithmetic": 8, "data_to_text": 4, "translation": 10, "commonsense": 76, "small_talk": 2},
            616_000,
            13,
        ),
    )
}


def main(
    only: Annotated[list[str] | None, typer.Option(help="Train this adapter alone; may be repeated.")] = None,
    scale: Annotated[float, typer.Option(help="Share of the training to do; 0.1 gives a quick try.")] = 1.0,
    out: Annotated[Path, typer.Option(help="Where the folders go.")] = ADAPTERS,
) -> None:
    """Train the adapters one after another; `tutti eval deploy/demo-views.yaml` scores them."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(MODELS / BASE.name)
    for adapter in [ALL[name] for name in only or ALL]:
        started = time.monotonic()
        train(adapter, tokenizer, int(scale * adapter.tokens), out / adapter.name)
        console.print(f"{adapter.name}: {(time.monotonic() - started) / 60:.1f} minutes")


def train(adapter: Adapter, tokenizer: PreTrainedTokenizerFast, tokens: int, folder: Path) -> None:
    """Train one adapter and write its folder, in bfloat16."""
    torch.manual_seed(adapter.seed)
    model = AutoModelForCausalLM.from_pretrained(MODELS / BASE.name, dtype=torch.float32)
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA))
    rng = Random(adapter.seed)
    chats = encode_chats(tokenizer, ChatStream(adapter.shares, rng), tokens, rng)
    todo = list(batches(chats, BATCH_TOKENS, tokenizer.pad_token_id, rng))
    losses: deque[float] = deque(maxlen=100)
    for step, loss in enumerate(learn(model, todo, len(todo), adapter.seed), start=1):
        losses.append(loss)
        if step % 20 == 0:
            console.print(f"{adapter.name}: step {step} of {len(todo)}, loss {sum(losses) / len(losses):.3f}")
    store(wrapped.to(torch.bfloat16), folder)


def store(wrapped: torch.nn.Module, folder: Path) -> None:
    """Write peft's folder in the place of an old one; its card names a path of this machine and is left out."""
    fresh = folder.with_name(f".{folder.name}.new")
    config = wrapped.peft_config["default"]  # type: ignore[union-attr, index]
    config.base_model_name_or_path = BASE.name
    config.target_modules = sorted(config.target_modules)  # a set, whose order changes from run to run
    wrapped.save_pretrained(fresh, safe_serialization=True)  # type: ignore[operator]
    (fresh / "README.md").unlink(missing_ok=True)
    (fresh / "adapter_model.safetensors").chmod(0o644)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


if __name__ == "__main__":
    typer.run(main)
