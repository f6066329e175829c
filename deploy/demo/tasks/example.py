"""Example: one question of a task with its answer, and the rule that splits a task's examples."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from random import Random

HELD_OUT_SHARE = 8
"""One key in this many belongs to the test split."""


@dataclass(frozen=True)
class Example:
    """One question with its answer.

    `key` names what must not appear in both splits: it is the same for every prompt that asks for the same
    thing (a sentence to translate in either direction, a set of attributes in any order).
    `reference` is what an answer is compared with; the whole answer, unless a task says otherwise.
    """

    prompt: str
    answer: str
    key: str
    reference: str


Task = Callable[[Random], Example]


class Split(Enum):
    TRAIN = "train"
    TEST = "test"


def split_of(key: str) -> Split:
    """The split a key belongs to: a property of the key alone, so that both sides agree without a list."""
    digest = blake2b(key.encode(), digest_size=8).digest()
    return Split.TEST if int.from_bytes(digest, "big") % HELD_OUT_SHARE == 0 else Split.TRAIN


def stream(task: Task, split: Split, rng: Random) -> Iterator[Example]:
    """Endless examples of one split, by drawing and rejecting those of the other."""
    while True:
        example = task(rng)
        if split_of(example.key) is split:
            yield example
