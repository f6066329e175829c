"""Plan: what a distillation will take in tokens, steps, memory and disk, before anything is run."""

from __future__ import annotations

from dataclasses import dataclass

from alignment.errors import ConfigError
from fusion.distill.fusechat.run import Run
from fusion.distill.training.conversations import encode, held_out
from fusion.distill.training.reading import open_tokenizer
from fusion.distill.training.settings import BASE
from fusion.distill.training.train import steps_of
from fusion.members.checkpoint import read_config, weight_files
from fusion.members.devices import DTYPES

ENTRY = 8
"""Bytes of an entry of a distribution: an id and a log-probability."""

STUDENT = 16
"""Bytes a weight takes in training: itself, its gradient and Adam's two moments, in float32."""

CHECKPOINT = 12
"""Bytes a weight takes in a checkpoint: without its gradient."""

KEPT = 3
"""Checkpoints that are on the disk at most: the best, the last, and the one being written."""


@dataclass(frozen=True)
class Reader:
    """The reading of a model: tokens in all and at the answers, and conversations that it cannot read."""

    tokens: int
    answers: int
    left_out: int


@dataclass(frozen=True)
class Plan:
    """The plan of a run.

    Attributes:
        conversations: to learn from, of which `held_out` are only checked on; `without_answer` were left out.
        readers: by name.
        steps: of each target.
        memory: bytes of the largest stage, training: weights, gradients, optimizer, and the logits of a batch.
        disk: bytes that `work` and the result take at most.
    """

    conversations: int
    held_out: int
    without_answer: int
    readers: dict[str, Reader]
    steps: int
    memory: int
    disk: int


def make_plan(run: Run) -> Plan:
    """Read the texts and every model's tokenizer and configuration, but no weights.

    Raises:
        ConfigError: what would keep the run from starting.
    """
    settings, conversations = run.settings, run.conversations
    readers = {}
    longest = 0
    for name, source in settings.readers.items():
        tokenizer, stops = open_tokenizer(source)
        encoded = [encode(tokenizer, stops, one, settings.data.max_length) for one in conversations.messages]
        known = [one for one in encoded if one is not None]
        if not known:
            raise ConfigError(
                f"{name} ({source.source}) can read none of the conversations; see its chat template."
            )
        readers[name] = Reader(
            sum(len(one.ids) for one in known), sum(len(one.positions) for one in known), len(encoded) - len(known)
        )
        if name == BASE:
            longest = max(len(one.ids) for one in known)
    marked = held_out(len(conversations.messages), settings.data.held_out)
    checked = sum(marked)
    base = settings.base
    config = read_config(base.source, revision=base.revision)
    stored = getattr(config.dtype, "itemsize", 4)
    weights = sum(weight_files(base.source, revision=base.revision).values()) // stored
    vocabulary = config.get_text_config(decoder=True).vocab_size
    logits = settings.train.batch * longest * vocabulary * 4
    targets, merged = len(settings.targets), 1 + len(settings.merge.compare)
    shards = (
        ENTRY
        * settings.represent.best
        * (sum(reader.answers for reader in readers.values()) + targets * readers[BASE].answers)
    )
    width = DTYPES[settings.dtype].itemsize
    return Plan(
        len(conversations.messages),
        checked,
        conversations.without_answer,
        readers,
        steps_of(settings.train, len(conversations.messages) - checked - readers[BASE].left_out),
        STUDENT * weights + 3 * logits,  # the logits, their gradient, and one more while it is computed
        shards + weights * (KEPT * CHECKPOINT + 4 * (1 + targets + merged) + width),
    )
