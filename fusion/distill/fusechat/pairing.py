"""Pairing: a source's distributions at the base's positions and in its tokens, for one shard.

Two ways: as published, by warping one tokenization onto the other and a map from statistics, and `projected`,
through a vocabulary map at the positions where both models have spelled the same text. Both work on one answer at
a time, as templates around answers have nothing to do with each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from alignment.text.surfaces import SPACE
from alignment.text.tokenizer import Tokenizer
from alignment.vocab_map import VocabMap
from fusion.core import Ids, LogProbs
from fusion.distill.fusechat.represent import Represented
from fusion.distill.loss import PADDING
from fusion.distill.token_alignment import Mode, align_sequences, matching_positions, sums_of_equal, transfer

Path = list[list[int]]

BEGIN, END = "\0", "\1"
"""Stand for the end of the prompt and of the answer, which every model writes in its own way."""


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokens as alignment sees them.

    Attributes:
        tokenizer: the model's own.
        stops: ids that end an answer.
        size: of the model's distributions.
    """

    tokenizer: Tokenizer
    stops: tuple[int, ...]
    size: int
    _texts: dict[int, str] = field(default_factory=dict, repr=False)

    @property
    def marker(self) -> str:
        """The character that stands for a space in its vocabulary strings."""
        return "Ġ" if self.tokenizer.kind == "byte_level" else SPACE

    @cached_property
    def strings(self) -> list[str]:
        """Its vocabulary strings; empty for ids without one."""
        known = self.tokenizer.hf.convert_ids_to_tokens(range(min(self.size, len(self.tokenizer.hf))))
        return [token or "" for token in known] + [""] * (self.size - len(known))

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Each id decoded alone."""
        for id in set(ids) - self._texts.keys():
            self._texts[id] = self.tokenizer.decode([id])
        return [self._texts[id] for id in ids]

    def places(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """[n], bytes of the answer before each of its tokens, the template's white space before it aside."""
        sizes = np.array([len(self.tokenizer.surfaces[id] or b"") for id in ids], np.int64)
        before = np.cumsum(sizes) - sizes
        before[1:] -= len(self.tokenizer.chat_lead)
        return before


@dataclass(frozen=True)
class Answer:
    """One answer in two tokenizations, and where its rows are in the two shards."""

    conversation: int
    pivot: list[int]
    source: list[int]
    pivot_row: int
    source_row: int


def answers(pivot: Represented, source: Represented) -> Iterator[Answer]:
    """The answers of all conversations that both models have read, in order."""
    pairs = zip(pivot.conversations(), source.conversations(), strict=True)
    pivot_rows, source_rows = pivot.rows(), source.rows()
    for number, (own, other) in enumerate(pairs):
        if own is None or other is None or len(own.answers) != len(other.answers):
            continue
        row, source_row = int(pivot_rows[number]), int(source_rows[number])
        for (start, end), (first, last) in zip(own.answers, other.answers, strict=True):
            yield Answer(number, own.ids[start:end], other.ids[first:last], row, source_row)
            row, source_row = row + end - start, source_row + last - first


def paths(pivot: Vocabulary, source: Vocabulary, pairs: Sequence[Answer]) -> NDArray[np.int32]:
    """The warping path of each answer, [P,2] int32: first and last source position of every pivot position.

    Positions are those of `BEGIN`, the answer's tokens, and `END`; so there is one more than tokens.
    """
    found = [
        (positions[0], positions[-1])
        for answer in pairs
        for positions in align_sequences(_strings(pivot, answer.pivot), _strings(source, answer.source))
    ]
    return np.array(found, np.int32).reshape(-1, 2)


def path_of(bounds: NDArray[np.int32]) -> Path:
    """One answer's path as `token_alignment` takes it; the positions of a step are without gaps."""
    return [list(range(first, last + 1)) for first, last in bounds.tolist()]


def inner_path(path: Path) -> Path:
    """The path between the answer's own tokens, `BEGIN` and `END` left out."""
    end = max(path[-1])
    return [[j - 1 for j in positions if 0 < j < end] for positions in path[1:-1]]


def warped_rows(
    pivot: Vocabulary,
    source: Vocabulary,
    answer: Answer,
    path: Path,
    rows: tuple[Ids, LogProbs],
    mode: Mode,
    same: Ids,
    statistics: Ids,
    *,
    add_up: bool,
) -> tuple[Ids, LogProbs, NDArray[np.bool_]]:
    """The source's rows [P,k] at one answer's P positions, and which [P] were taken over.

    The others have the next token alone, as published, with all of the mass.
    """
    own, other = _strings(pivot, answer.pivot), _strings(source, answer.source)
    # Position i holds what follows string i; nothing is known of what follows END.
    padded = np.full((1, rows[0].shape[1]), PADDING, np.int32)
    ids = np.concatenate([rows[0], padded])
    logprobs = np.concatenate([rows[1], np.full(padded.shape, -np.inf, np.float32)])
    logits, names = transfer(
        path,
        [PADDING, *answer.pivot],
        own,
        other,
        logprobs,
        ids,
        mode=mode,
        same=same,
        statistics=statistics,
        add_up=add_up,
    )
    taken = matching_positions(path, own, other, mode=mode) >= 0
    logits[~taken, 0] = 0.0
    return names[:-1], logits[:-1], taken[:-1]


def shared_positions(pivot: Vocabulary, source: Vocabulary, answer: Answer) -> NDArray[np.int64]:
    """For each pivot position [P] the source position after the same text, -1 where there is none.

    A template may lead in to an answer with white space that is part of its first token, and then only models
    with the same lead can be compared there.
    """
    own, other = pivot.places(answer.pivot), source.places(answer.source)
    found = np.searchsorted(other, own, side="right") - 1
    found[found >= 0] = np.where(other[found[found >= 0]] == own[found >= 0], found[found >= 0], -1)
    if pivot.tokenizer.chat_lead != source.tokenizer.chat_lead:
        found[0] = -1
    if own[-1] != other[-1]:  # what they read is not the same text
        found[:] = -1
    return found.astype(np.int64)


def projected_rows(
    ids: Ids, logprobs: LogProbs, vocabulary_map: VocabMap | None
) -> tuple[Ids, NDArray[np.float64]]:
    """Rows [T,k] in the target's vocabulary: ids [T,k R] (-1 pads, may repeat) and their mass."""
    mass = np.where(ids >= 0, np.exp(logprobs.astype(np.float64)), 0.0)
    if vocabulary_map is None:
        return ids, mass
    named = np.where(ids >= 0, ids, 0)
    targets = vocabulary_map.target_ids[named]
    spread = vocabulary_map.weights[named].astype(np.float64) * mass[..., None]
    names: Ids = np.where(spread > 0, targets, PADDING).astype(np.int32)
    return names.reshape(len(ids), -1), spread.reshape(len(ids), -1)


def gather(ids: Ids, mass: NDArray[np.float64], best: int) -> tuple[Ids, NDArray[np.float64]]:
    """Rows with equal ids summed, and the `best` of each row, most mass first; the lowest id among equals."""
    order = np.argsort(ids, axis=1, kind="stable")
    ids, mass = np.take_along_axis(ids, order, 1), np.take_along_axis(mass, order, 1)
    starts, sums = sums_of_equal(ids, mass)
    total = np.where(starts & (ids >= 0), sums, -1.0)
    first = np.argsort(-total, axis=1, kind="stable")[:, :best]
    kept_ids, kept = np.take_along_axis(ids, first, 1), np.take_along_axis(total, first, 1)
    return np.where(kept > 0, kept_ids, PADDING).astype(np.int32), np.where(kept > 0, kept, 0.0)


def _strings(vocabulary: Vocabulary, answer: Sequence[int]) -> list[str]:
    """BEGIN, the answer's tokens each decoded alone, END for the token that ends it."""
    return [BEGIN, *vocabulary.texts(answer[:-1]), END]
