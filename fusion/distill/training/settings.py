"""Settings that every distillation has, each declared once with default, bounds and meaning.

Bounds are metadata, as in `fusion.options`: what reads a file derives its fields from these classes and checks
them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Lt

from fusion.distill.loss import Loss

Count = Annotated[int, Gt(0)]
Share = Annotated[float, Interval(ge=0, lt=1)]
Schedule = Literal["cosine", "linear", "constant_with_warmup"]

BASE = "base"
"""The base among the models of a distillation: a name that no source may have."""

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is."""
StageProgress = Callable[[str, int, int], None]
"""The same, with what is worked on before it."""


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint and how an engine runs it; see `fusion.members.registry` for the engines."""

    source: str
    engine: str = "transformers"
    dtype: str = "float32"
    device: str = "cpu"
    revision: str | None = None
    cache_tokens: Count = 16384
    max_sequences: Count = 64
    prefill_chunk: Count = 1024


@dataclass(frozen=True, slots=True)
class Data:
    """Texts.

    Attributes:
        files: JSON lines, see `conversations`.
        held_out: share of the conversations that is not trained on but decides when to stop.
        max_length: longest conversation, in the tokens of each model; longer ones are left out.
        limit: the most conversations that are read.
    """

    files: tuple[Path, ...]
    held_out: Share = 0.02
    max_length: Annotated[int, Ge(2)] = 2048
    limit: Count | None = None


@dataclass(frozen=True, slots=True)
class Train:
    """The training loop.

    Attributes:
        learning_rate, schedule, warmup, weight_decay, beta2, max_norm: AdamW's; `warmup` is a share of the steps,
            `beta2` its second moment's decay.
        epochs: passes over the texts; `steps` sets the number of steps instead.
        batch: conversations of a batch, `accumulate` batches to a step.
        loss, lm_weight: see `fusion_loss`; `lm_weight` 1 is plain fine-tuning.
        log_every, check_every: steps between entries of the curve, and between held-out losses and checkpoints,
            each of which makes an entry as well.
        patience: stop after this many held-out losses without a new lowest; None trains to the end.
        seed: of order and dropout; every target derives one of its own from it.
        bfloat16: autocast; weights and optimizer stay in float32.
        lora_rank: train adapters of this rank (peft), merged into the weights at the end; None trains all weights.
    """

    learning_rate: Annotated[float, Gt(0)] = 5e-6
    schedule: Schedule = "cosine"
    warmup: Share = 0.03
    weight_decay: Annotated[float, Ge(0)] = 0.0
    beta2: Share = 0.999
    max_norm: Annotated[float, Gt(0)] = 1.0
    epochs: Annotated[float, Gt(0)] = 3.0
    steps: Count | None = None
    batch: Count = 16
    accumulate: Count = 8
    loss: Loss = "ce"
    lm_weight: Annotated[float, Interval(ge=0, le=1)] = 0.9
    log_every: Count = 10
    check_every: Count = 100
    patience: Count | None = 3
    seed: Annotated[int, Ge(0), Lt(2**32)] = 0
    bfloat16: bool = False
    lora_rank: Count | None = None


def digest_of(*parts: Any) -> str:
    """A sha256 over settings and digests, to know whether a stage's inputs have changed."""
    plain = [asdict(part) if hasattr(part, "__dataclass_fields__") else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()
