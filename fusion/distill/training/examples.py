"""Examples: conversations with their targets as the training loop takes them, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from fusion.distill.loss import IGNORED, PADDING

MIXED = 20
"""Steps whose examples are sorted by length together."""


@dataclass(frozen=True)
class Example:
    """One conversation.

    Attributes:
        ids: [L] its tokens.
        positions: [P] the positions whose next token is learned.
        target_ids, probabilities: [P,K], what is to follow them.
    """

    ids: NDArray[np.int32]
    positions: NDArray[np.int64]
    target_ids: NDArray[np.int32]
    probabilities: NDArray[np.float32]


class Examples(Dataset[Example]):
    """Examples by index, the same for the same index at any time, so that a resumed run reads the same."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each."""
        return [len(example.ids) for example in self._examples]

    @cached_property
    def positions_each(self) -> float:
        """Learned positions of one, in the mean."""
        return sum(len(example.positions) for example in self._examples) / len(self._examples)


class LengthGrouped(Sampler[int]):
    """Indices of an epoch in an order that puts examples of like length into one step, to save padding.

    The order is a function of seed and epoch alone, so that a resumed run has the one that it would have had.

    Args:
        lengths: of the examples.
        step: examples of a step; the order within and of steps is random.
        seed: of the order.
        epoch: whose order comes first.
    """

    def __init__(self, lengths: Sequence[int], step: int, seed: int, epoch: int = 0) -> None:
        self._lengths = np.array(lengths)
        self._step = step
        self._seed = seed
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self._seed, self._epoch))
        order = rng.permutation(len(self._lengths))
        together = self._step * MIXED
        for start in range(0, len(order), together):
            some = order[start : start + together]
            some = some[np.argsort(self._lengths[some], kind="stable")]
            steps = [some[at : at + self._step] for at in range(0, len(some), self._step)]
            for number in rng.permutation(len(steps)):
                yield from steps[number].tolist()


def collate(examples: Sequence[Example]) -> dict[str, Any]:
    """A batch of B examples, padded on the right to the longest of L tokens.

    Returns:
        input_ids, attention_mask, labels [B,L] (labels -100 where nothing is learned) int64, and of the targets
        target_ids [B,L,K] int32 (-1 pads) and probabilities [B,L,K] float32.
    """
    count, length = len(examples), max(len(one.ids) for one in examples)
    width = max(one.target_ids.shape[1] for one in examples)
    ids, mask = np.zeros((count, length), np.int64), np.zeros((count, length), np.int64)
    labels = np.full((count, length), IGNORED, np.int64)
    targets = np.full((count, length, width), PADDING, np.int32)
    probabilities = np.zeros((count, length, width), np.float32)
    for row, one in enumerate(examples):
        ids[row, : len(one.ids)] = one.ids
        mask[row, : len(one.ids)] = 1
        labels[row, one.positions + 1] = one.ids[one.positions + 1]
        targets[row, one.positions, : one.target_ids.shape[1]] = one.target_ids
        probabilities[row, one.positions, : one.target_ids.shape[1]] = one.probabilities
    arrays = {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "target_ids": targets,
        "probabilities": probabilities,
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
