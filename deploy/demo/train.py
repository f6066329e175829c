"""Training of the demo ensemble, tokenizers included: `python -m deploy.demo.train`."""

import shutil
import time
from collections import deque
from pathlib import Path
from random import Random
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from deploy.demo import testset, vocabularies
from deploy.demo.batches import batches, encode_chats
from deploy.demo.chats import ChatStream
from deploy.demo.learning import learn
from deploy.demo.members import MEMBERS, MODELS, Member

CORPUS_SEED = 0
BATCH_TOKENS = 2048

console = Console()


def main(
    only: Annotated[list[str] | None, typer.Option(help="Train this member alone; may be repeated.")] = None,
    scale: Annotated[float, typer.Option(help="Share of the training to do; 0.1 gives a quick try.")] = 1.0,
    models: Annotated[Path, typer.Option(help="Where the model folders go.")] = MODELS,
) -> None:
    """Train the members one after another and store them; `tutti eval deploy/demo.yaml` scores them."""
    testset.main()
    texts = vocabularies.corpus(CORPUS_SEED)
    for member in [MEMBERS[name] for name in only or MEMBERS]:
        started = time.monotonic()
        tokenizer = member.train_tokenizer(texts)
        model = train(member, tokenizer, int(scale * member.tokens))
        store(model, tokenizer, models / member.name)
        minutes = (time.monotonic() - started) / 60
        console.print(
            f"{member.name}, strong at {' and '.join(member.strong_at)}: "
            f"{model.num_parameters() / 1e6:.2f} M parameters, {minutes:.1f} minutes"
        )


def train(member: Member, tokenizer: PreTrainedTokenizerFast, tokens: int) -> PreTrainedModel:
    """A new model of this member's architecture, trained on chats of its own."""
    torch.manual_seed(member.seed)
    model = AutoModelForCausalLM.from_config(member.make_config(tokenizer), dtype=torch.float32)
    rng = Random(member.seed)
    chats = encode_chats(tokenizer, ChatStream(member.shares, rng), tokens, rng)
    todo = list(batches(chats, BATCH_TOKENS, tokenizer.pad_token_id, rng))
    with _progress() as progress:
        bar = progress.add_task(member.name, total=len(todo), loss=float("nan"))
        losses: deque[float] = deque(maxlen=100)
        for step, loss in enumerate(learn(model, todo, len(todo), member.seed), start=1):
            losses.append(loss)
            progress.update(bar, advance=1, loss=sum(losses) / len(losses))
            if progress.disable and step % 100 == 0:
                console.print(f"{member.name}: step {step} of {len(todo)}, loss {sum(losses) / len(losses):.3f}")
    return model


def store(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes a Hugging Face folder in bfloat16, beside the old one first: a reader never sees half a model."""
    fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=256,
    )
    model.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    (fresh / "model.safetensors").chmod(0o644)  # written as readable by its owner alone
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _progress() -> Progress:
    """A bar with the loss; where the output is no terminal, lines are printed instead."""
    return Progress(
        TextColumn("{task.description:>8}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps, loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


if __name__ == "__main__":
    typer.run(main)
