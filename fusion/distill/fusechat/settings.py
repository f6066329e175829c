"""Settings of a distillation, each declared once with default, bounds and meaning.

Bounds are metadata, as in `fusion.options`: what reads a file derives its fields from these classes and checks
them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Lt

from fusion.distill.folders import Method as MergeMethod
from fusion.distill.loss import Loss
from fusion.distill.sce import Variant

Alignment = Literal["statistics", "statistics-nomatrix", "exact", "projected"]
Combine = Literal["best", "mean"]
Count = Annotated[int, Gt(0)]
Share = Annotated[float, Interval(ge=0, lt=1)]
Schedule = Literal["cosine", "linear", "constant_with_warmup"]

BASE = "base"
"""The name under which the base itself can be one of a target's teachers."""


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
class Represent:
    """The part of each distribution that is kept: the `best` tokens; `shard` conversations go to a file."""

    best: Annotated[int, Interval(ge=1, le=1000)] = 16
    shard: Count = 1024


@dataclass(frozen=True, slots=True)
class Align:
    """The way of a source's distributions to the base's positions and tokens.

    Attributes:
        method: the published ways (`token_alignment.transfer` describes them), or "projected": through a
            vocabulary map, at positions where the tokens of both models have spelled the same text.
        map: method of that map, a key of `alignment.methods.registry.METHODS`.
        temperature: of the targets.
        rest: give what the kept entries leave out to one entry of its own, instead of renormalising them as
            published; only at temperature 1, since nothing else is known of the rest.
    """

    method: Alignment = "statistics"
    map: str = "prefix"
    temperature: Annotated[float, Gt(0)] = 1.0
    rest: bool = True


@dataclass(frozen=True, slots=True)
class Target:
    """A model to train.

    Attributes:
        teachers: names of sources, or `BASE`.
        combine: "best" takes for every conversation the distributions of the model among base and teachers that
            predicts it best (MinCE); "mean" the mean of all teachers, which is what an ensemble of them answers
            (projected alignment only).
    """

    teachers: tuple[str, ...]
    combine: Combine = "best"


@dataclass(frozen=True, slots=True)
class Train:
    """The training loop.

    Attributes:
        learning_rate, schedule, warmup, weight_decay, beta2, max_norm: AdamW's; `warmup` is a share of the steps,
            `beta2` its second moment's decay.
        epochs: passes over the texts; `steps` sets the number of steps instead.
        batch: conversations of a batch, `accumulate` batches to a step.
        loss, lm_weight: see `fusion_loss`; `lm_weight` 1 is plain fine-tuning.
        log_every, check_every: steps between entries of the curve, and between held-out losses and checkpoints.
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


@dataclass(frozen=True, slots=True)
class Merge:
    """The merge of the targets, see `folders.merge_folders`; `compare` names methods to merge by as well."""

    method: MergeMethod = "sce"
    compare: tuple[MergeMethod, ...] = ()
    select: Annotated[float, Interval(ge=0, le=1)] = 1.0
    variant: Variant = "fusechat"


@dataclass(frozen=True, slots=True)
class FuseChat:
    """A distillation.

    Attributes:
        name: of the result, for its model card.
        base: the checkpoint that is trained; the pivot of all alignments.
        sources: by name, what it learns from.
        targets: by name; the result is merged from them.
        work: folder for what the stages hand on, `out` for the result.
        dtype: of the result's weights.
    """

    name: str
    base: Source
    sources: dict[str, Source]
    targets: dict[str, Target]
    data: Data
    work: Path
    out: Path
    represent: Represent = field(default_factory=Represent)
    align: Align = field(default_factory=Align)
    train: Train = field(default_factory=Train)
    merge: Merge = field(default_factory=Merge)
    dtype: str = "float32"

    @property
    def readers(self) -> dict[str, Source]:
        """Every model that reads the texts, the base first."""
        return {BASE: self.base, **self.sources}


def digest_of(*parts: Any) -> str:
    """A sha256 over settings and digests, to know whether a stage's inputs have changed."""
    plain = [asdict(part) if hasattr(part, "__dataclass_fields__") else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()
