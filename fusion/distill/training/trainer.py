"""The training loop: transformers' Trainer with the fusion loss, and what keeps a run safe from accidents."""

from __future__ import annotations

import hashlib
import inspect
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignment.errors import ConfigError
from fusion.distill.loss import IGNORED, fusion_loss
from fusion.distill.training.curve import CURVE, curve_of, write_curve
from fusion.distill.training.examples import Examples, LengthGrouped
from fusion.distill.training.settings import Progress, Train
from fusion.distill.training.shards import read_json, write_json

COMPLETE = "complete.json"
"""The last file of a checkpoint: the digests of all others. A checkpoint without it, or with others, is none."""

STATE = "trainer_state.json"
NEEDED = ("optimizer.pt", "scheduler.pt", STATE)
"""Without the first two a resumed run would quietly start them afresh."""

HELD_OUT = "eval_loss"


def processes() -> Any:
    """The processes of this training (accelerate's `PartialState`): one, unless a launcher started more."""
    from accelerate import PartialState  # type: ignore[import-untyped]

    return PartialState(cpu=not torch.cuda.is_available())


class FusionTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose loss is `fusion_loss` over sparse targets, a mean over all learned positions of a step."""

    def __init__(self, *args: Any, settings: Train, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = settings
        self.first_epoch = 0
        # The loss below is divided by the positions of all batches of a step, and not once more by their number.
        self.model_accepts_loss_kwargs = True
        whole = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        self._cuts = "logits_to_keep" in inspect.signature(whole.forward).parameters

    def _get_train_sampler(self, train_dataset: Examples | None = None) -> LengthGrouped:
        examples = train_dataset or self.train_dataset
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        # Several processes that go on in the middle of an epoch do not tell the sampler which it is.
        return LengthGrouped(examples.lengths, step, self.args.seed, self.first_epoch)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """See Trainer; `num_items_in_batch` are the learned positions of all batches of the step."""
        labels = inputs["labels"]
        first = _first_learned(labels) if self._cuts else 0
        kept = {"logits_to_keep": labels.shape[1] - first} if self._cuts else {}
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **kept)
        total, _, _ = fusion_loss(
            outputs.logits,
            labels[:, first:],
            inputs["probabilities"][:, first:],
            inputs["target_ids"][:, first:],
            loss=self._settings.loss,
            lm_weight=self._settings.lm_weight,
            positions=None if num_items_in_batch is None else int(num_items_in_batch),
        )
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            total = total * self.accelerator.num_processes
        return (total, {"loss": total}) if return_outputs else total

    def prediction_step(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> tuple[Any, None, None]:
        """The held-out loss of a batch; its logits are not kept.

        The Trainer means over conversations, so a batch counts by its share of the positions.
        """
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs)).detach().mean()
        learned = int((inputs["labels"] != IGNORED).sum())
        return loss * (learned / len(inputs["labels"]) / self.eval_dataset.positions_each), None, None

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """See Trainer; a loss that is not a number ends the run before it reaches the weights."""
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise _not_a_number("loss", self.state.global_step + 1)
        return loss


def _first_learned(labels: torch.Tensor) -> int:
    """The position from which a batch has something to learn; logits before it would be computed in vain."""
    columns = (labels != IGNORED).any(0).nonzero()
    return max(0, int(columns[0]) - 1) if len(columns) else 0


class Guard(TrainerCallback):  # type: ignore[misc]
    """Ends a run whose gradients are no numbers, and one that learns nothing more; marks checkpoints complete.

    Whether to stop follows from the log alone, which is part of a checkpoint: a resumed run decides the same.
    """

    def __init__(self, settings: Train, progress: Progress) -> None:
        self._patience = settings.patience
        self._progress = progress

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After clipping, a norm that is no number has spread to all gradients."""
        sums = [p.grad.sum() for p in kwargs["model"].parameters() if p.grad is not None]
        if not torch.isfinite(torch.stack(sums)).all():
            raise _not_a_number("gradient", state.global_step + 1)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report how far the run is."""
        control.should_log |= control.should_save  # a resumed run begins a mean of losses there, so this ends one
        self._progress(state.global_step, state.max_steps)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop after `patience` held-out losses without a new lowest."""
        if not math.isfinite(_held_out(state)[-1]):
            raise _not_a_number("held-out loss", state.global_step)
        control.should_training_stop |= learns_no_more(state, self._patience)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep the curve up to date."""
        if state.is_world_process_zero:
            write_curve(Path(args.output_dir) / CURVE, curve_of(state.log_history))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write down what the checkpoint consists of, now that all of it is on the disk."""
        processes().wait_for_everyone()
        if state.is_world_process_zero:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def _held_out(state: TrainerState) -> list[float]:
    return [entry[HELD_OUT] for entry in state.log_history if HELD_OUT in entry]


def learns_no_more(state: TrainerState, patience: int | None) -> bool:
    """Return whether the last `patience` held-out losses brought no new lowest."""
    losses = _held_out(state)
    return patience is not None and bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= patience


def go_on(trainer: FusionTrainer, checkpoint: Path, patience: int | None) -> None:
    """Train from a checkpoint to the end; where that has come already, take the weights that the end takes.

    The Trainer itself would take a further step.
    """
    state = TrainerState.load_from_json(str(checkpoint / STATE))
    if state.global_step < state.max_steps and not learns_no_more(state, patience):
        trainer.first_epoch = int(state.epoch)
        trainer.train(resume_from_checkpoint=str(checkpoint))
        return
    best = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    trainer._load_from_checkpoint(str(checkpoint.parent / Path(best).name if best else checkpoint))


def mark_complete(folder: Path) -> None:
    """Write the digests of a checkpoint's files into it."""
    write_json(
        folder / COMPLETE, {file.name: _digest(file) for file in sorted(folder.iterdir()) if file.is_file()}
    )


def newest_complete(folder: Path) -> Path | None:
    """The newest checkpoint of a run's folder that is whole; those that are not are removed."""
    found = None
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])):
        if _is_whole(checkpoint):
            found = checkpoint
        else:
            shutil.rmtree(checkpoint)
    return found


def _is_whole(folder: Path) -> bool:
    listed = read_json(folder / COMPLETE)
    return set(NEEDED) <= listed.keys() and all(
        (folder / name).is_file() and _digest(folder / name) == digest for name, digest in listed.items()
    )


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _not_a_number(what: str, step: int) -> ConfigError:
    return ConfigError(
        f"The {what} of step {step} is not a number; lower train.learning_rate, or check the data around it. "
        "The weights of the last checkpoint are as they were."
    )
