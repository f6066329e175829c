"""Represent: every model reads the texts once; its best tokens and losses at the answers are kept.

FuseChat, section 3.2. A stage's files are shards of equal numbers of conversations, so that shard n of every model
speaks of the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignment.errors import ConfigError
from fusion.distill.fusechat.settings import Represent
from fusion.distill.loss import PADDING
from fusion.distill.training.conversations import Conversations, Encoded, encode
from fusion.distill.training.examples import Example
from fusion.distill.training.reading import open_engine, open_tokenizer, read_all, read_as
from fusion.distill.training.settings import Progress, Source, digest_of
from fusion.distill.training.shards import (
    Arrays,
    read_shard,
    require_shard,
    shard_path,
    write_json,
    write_shard,
)
from fusion.members.engine import Engine

UNREAD = "unread.json"


@dataclass(frozen=True)
class Represented:
    """A model's reading of a shard, N conversations with A answers and T learned positions in all.

    Attributes:
        text: token ids [sum of lengths] int32 of all conversations.
        lengths: [N] int32; 0 for a conversation that the model cannot read.
        answer_counts: [N] int32.
        answers: [A,2] int32, start and end of each answer in its conversation.
        ids, logprobs: [T,k] int32 and float32, the best next tokens at each learned position.
        losses: [N] float64, nats of all answers of a conversation together; NaN where it is not read.
    """

    text: NDArray[np.int32]
    lengths: NDArray[np.int32]
    answer_counts: NDArray[np.int32]
    answers: NDArray[np.int32]
    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    losses: NDArray[np.float64]

    def conversations(self) -> list[Encoded | None]:
        """Each conversation, None where the model cannot read it."""
        found: list[Encoded | None] = []
        at = first = 0
        for length, count in zip(self.lengths.tolist(), self.answer_counts.tolist(), strict=True):
            spans = [(int(start), int(end)) for start, end in self.answers[first : first + count]]
            found.append(Encoded(self.text[at : at + length].tolist(), spans) if length else None)
            at, first = at + length, first + count
        return found

    def rows(self) -> NDArray[np.int64]:
        """[N+1], where each conversation's rows of `ids` begin, and the end."""
        sizes = self.answers[:, 1] - self.answers[:, 0]
        owners = np.repeat(np.arange(len(self.lengths)), self.answer_counts)
        counts = np.bincount(owners, weights=sizes, minlength=len(self.lengths)).astype(np.int64)
        return np.concatenate([[0], np.cumsum(counts)])


def represent(
    name: str,
    source: Source,
    conversations: Conversations,
    settings: Represent,
    max_length: int,
    folder: Path,
    progress: Progress,
) -> int:
    """Write a model's shards into `folder`; those that are there and whole are kept.

    Returns the number of conversations that the model cannot read, which `UNREAD` in `folder` holds as well.

    Raises:
        ConfigError: the model cannot be run, or reads none of the conversations.
    """
    tokenizer, stops = open_tokenizer(source)
    inputs = inputs_of(source, conversations, settings, max_length)
    total, size = len(conversations.messages), settings.shard
    missing, read = [], 0
    for number in range(shard_count(conversations, settings)):
        shard = read_shard(shard_path(folder, number), inputs)
        if shard is None:
            missing.append(number)
        else:
            read += int(np.count_nonzero(shard["lengths"]))
    done = total - sum(min(size, total - number * size) for number in missing)
    progress(done, total)
    if missing:
        with open_engine(source, settings.best) as engine:
            longest = min(max_length, engine.capacity.context)
            for number in missing:
                some = conversations.messages[number * size : (number + 1) * size]
                encoded = [encode(tokenizer, stops, messages, longest) for messages in some]
                read += sum(one is not None for one in encoded)
                write_shard(shard_path(folder, number), _read(engine, encoded, settings.best), inputs)
                done += len(some)
                progress(done, total)
    if not read:
        raise ConfigError(
            f"{name} ({source.source}) can read none of {total} conversations: they are longer than {max_length} "
            "tokens or its context, or its chat template does not write an answer after its generation prompt; "
            "raise data.max_length, or leave this model out."
        )
    write_json(folder / UNREAD, {"conversations": total - read})
    return total - read


def shard_count(conversations: Conversations, settings: Represent) -> int:
    """Return the number of shards."""
    return -(-len(conversations.messages) // settings.shard)


def inputs_of(source: Source, conversations: Conversations, settings: Represent, max_length: int) -> str:
    """The inputs that a model's shards depend on."""
    return digest_of(source, read_as(source), conversations.digest, settings, max_length)


def represented(path: Path, inputs: str) -> Represented:
    """A shard that `represent` has written.

    Raises:
        ConfigError: it is not there.
    """
    return Represented(**require_shard(path, inputs))


def _read(engine: Engine, encoded: list[Encoded | None], best: int) -> Arrays:
    known = [one for one in encoded if one is not None]
    answers = iter(read_all(engine, [one.ids for one in known], [one.positions for one in known]))
    ids, logprobs = [np.empty((0, best), np.int32)], [np.empty((0, best), np.float32)]  # where none can be read
    losses = []
    for one in encoded:
        if one is None:
            losses.append(np.nan)
            continue
        answer = next(answers)
        assert answer.appended_logprobs is not None
        ids.append(answer.ids[:-1])  # the last row is what comes after the end
        logprobs.append(answer.logprobs[:-1])
        losses.append(-float(answer.appended_logprobs.astype(np.float64).sum()))
    spans = [span for one in known for span in one.answers]
    return {
        "text": np.array([id for one in known for id in one.ids], np.int32),
        "lengths": np.array([len(one.ids) if one else 0 for one in encoded], np.int32),
        "answer_counts": np.array([len(one.answers) if one else 0 for one in encoded], np.int32),
        "answers": np.array(spans, np.int32).reshape(-1, 2),
        "ids": np.concatenate(ids).astype(np.int32),
        "logprobs": np.concatenate(logprobs).astype(np.float32),
        "losses": np.array(losses, np.float64),
    }


def examples_of(pivot: Represented, targets: Arrays | None) -> list[Example | None]:
    """The examples of a shard; None for a conversation that the base has not read.

    Without `targets` they are for plain fine-tuning: there is nothing to learn towards but the text.
    """
    found: list[Example | None] = []
    rows = pivot.rows()
    for number, one in enumerate(pivot.conversations()):
        if one is None:
            found.append(None)
            continue
        here = slice(rows[number], rows[number + 1])
        positions = np.array(one.positions, np.int64)
        if targets is None:
            ids, probabilities = (
                np.full((len(positions), 1), PADDING, np.int32),
                np.zeros((len(positions), 1), np.float32),
            )
        else:
            ids, probabilities = targets["ids"][here], targets["probabilities"][here]
        found.append(Example(np.array(one.ids, np.int32), positions, ids, probabilities))
    return found
