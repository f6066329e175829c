"""Train: one target, from the base's weights, towards its distributions.

FuseChat, section 3.3. A run leaves checkpoints that are complete or not counted, so it can be killed at any time
and goes on from the last of them; on a CPU in float32 it ends with the same bits as a run that was left alone.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig, PrinterCallback, TrainingArguments

from alignment.errors import ConfigError, one_line
from alignment.files import writing
from fusion.distill.checkpoint import copy_beside, written_at_once
from fusion.distill.training.curve import CURVE, PICTURE, Entry, draw_curve, read_curve
from fusion.distill.training.examples import Examples, collate
from fusion.distill.training.folders import local_folder
from fusion.distill.training.settings import Progress, Source, Train
from fusion.distill.training.shards import read_json, write_json
from fusion.distill.training.trainer import FusionTrainer, Guard, go_on, newest_complete, processes
from fusion.members.checkpoint import loaded_whole, quiet, read_config, weight_files

STAGE = "stage.json"
GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Texts:
    """The examples that a run learns from, and those it is checked on."""

    learned: Examples
    held_out: Examples


def load_student(base: Source) -> Any:
    """The base as a model to train, in float32: Adam's small steps are lost in half precision.

    Raises:
        ConfigError: it cannot be loaded whole from safetensors.
    """
    read_config(base.source, revision=base.revision)
    weight_files(base.source, revision=base.revision)
    model = loaded_whole(base.source, revision=base.revision, dtype=torch.float32, use_safetensors=True)
    # What transformers would not generate with it does not write either, at any checkpoint: a temperature without
    # do_sample, say. `save_student` copies the base's own file.
    model.generation_config = GenerationConfig()
    for name in model.config._get_generation_parameters():
        delattr(model.config, name)
    return model


def save_student(
    model: Any, base: Source, folder: Path, about: dict[str, Any], beside: Sequence[Path] = ()
) -> None:
    """Write a model with the base's tokenizer and settings, and the files `beside` that are there.

    The folder appears whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    with _disk(folder), written_at_once(folder) as unfinished, quiet():
        copy_beside(local_folder(base), unfinished)
        generation = unfinished / GENERATION
        own = generation.read_bytes() if generation.exists() else None
        model.save_pretrained(unfinished)
        if own is None:
            generation.unlink(missing_ok=True)
        else:
            generation.write_bytes(own)
        for file in beside:
            if file.exists():
                shutil.copyfile(file, unfinished / file.name)
        write_json(unfinished / STAGE, about)


def train(
    name: str, base: Source, texts: Texts, settings: Train, folder: Path, inputs: str, progress: Progress
) -> list[Entry]:
    """Train a target into `folder / "model"` and return its curve; one that is there already is kept.

    Raises:
        ConfigError: nothing to learn from, a loss that is not a number, a full disk.
    """
    result = folder / "model"
    if read_json(result / STAGE).get("inputs") == inputs:
        for run in folder.glob("run-*"):  # left by a kill right after the result was whole
            if processes().is_main_process:
                shutil.rmtree(run)
        curve = read_curve(result / CURVE)
        progress(steps := int(curve[-1]["step"]) if curve else 1, steps)
        return curve
    if not len(texts.learned):
        raise ConfigError(f"{name} has nothing to learn from; add conversations, or lower data.held_out.")
    run = folder / f"run-{inputs[:16]}"
    with _disk(run), processes().main_process_first():
        for old in folder.glob("run-*"):
            if old != run:
                shutil.rmtree(old)
        if result.exists():
            shutil.rmtree(result)
        run.mkdir(parents=True, exist_ok=True)
        checkpoint = newest_complete(run)
    torch.manual_seed(settings.seed)
    model = _with_adapters(load_student(base), settings)
    with _disk(run), quiet():
        trainer = FusionTrainer(
            model,
            _arguments(settings, texts, run),
            data_collator=collate,
            train_dataset=texts.learned,
            eval_dataset=texts.held_out if len(texts.held_out) else None,
            callbacks=[Guard(settings, progress)],
            settings=settings,
        )
        trainer.remove_callback(PrinterCallback)
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ConfigError(
                "Every device trains the whole model: leave FSDP and DeepSpeed out of accelerate's configuration."
            )
        if checkpoint is None:
            trainer.train()
        else:
            go_on(trainer, checkpoint, settings.patience)
    curve = read_curve(run / CURVE)
    final = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_world_process_zero():
        if settings.lora_rank is not None:
            final = final.merge_and_unload()
        draw_curve(run / PICTURE, curve, name)
        save_student(final, base, result, {"inputs": inputs}, (run / CURVE, run / PICTURE))
        shutil.rmtree(run)
    return curve


def steps_of(settings: Train, examples: int, devices: int = 1) -> int:
    """Return the number of steps of a run over this number of examples."""
    if settings.steps is not None:
        return settings.steps
    batches = math.ceil(examples / (settings.batch * devices))
    return math.ceil(settings.epochs * math.ceil(batches / settings.accumulate))


def _arguments(settings: Train, texts: Texts, run: Path) -> TrainingArguments:
    checked = len(texts.held_out) > 0
    steps = steps_of(settings, len(texts.learned), processes().num_processes)
    every = min(settings.check_every, steps)
    arguments = TrainingArguments(
        output_dir=str(run),
        per_device_train_batch_size=settings.batch,
        per_device_eval_batch_size=settings.batch,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=round(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        adam_beta2=settings.beta2,
        max_grad_norm=settings.max_norm,
        num_train_epochs=settings.epochs,
        max_steps=-1 if settings.steps is None else settings.steps,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=settings.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if checked else "no",
        eval_steps=every if checked else None,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=checked and settings.patience is not None,
        metric_for_best_model="loss" if checked else None,
        greater_is_better=False,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    arguments._n_gpu = 1  # a process that sees several would split each batch between them, with a loss for each
    return arguments


def _with_adapters(model: Any, settings: Train) -> Any:
    """The model with LoRA adapters on all linear layers but the tables, which a tied model shares."""
    if settings.lora_rank is None:
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ConfigError(
            "lora_rank needs peft; install it in Tutti's folder with: pip install '.[distill]'"
        ) from None
    adapters = LoraConfig(r=settings.lora_rank, lora_alpha=2 * settings.lora_rank, target_modules="all-linear")
    return get_peft_model(model, adapters)


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """A full disk, which the writers of PyTorch and safetensors report by errors of their own."""
    try:
        with writing(folder):
            yield
    except (RuntimeError, SafetensorError) as error:
        is_full = "PytorchStreamWriter" in str(error) or "No space left" in str(error)
        if isinstance(error, RuntimeError) and not is_full:
            raise
        raise ConfigError(
            f"{folder} cannot be written ({one_line(error)}); make room there, or name another folder as work, "
            "and run the same again."
        ) from error
