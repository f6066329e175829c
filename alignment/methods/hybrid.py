"""Hybrid maps: exact where the bytes coincide, learned for the tokens that the exact map leaves out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from alignment.methods.eva import METHOD as EVA
from alignment.methods.eva import sharpened
from alignment.methods.exact import METHOD as EXACT
from alignment.methods.method import MapRequest, Method
from alignment.text.tokenizer import Tokenizer
from alignment.vocab_map import VocabMap


def hybrid_map(first: VocabMap, second: VocabMap) -> VocabMap:
    """The rows of `first`, and those of `second` where `first` has none.

    Both map the same source ids [Vs] into the same target vocabulary. With `first` the exact map and `second` a
    learned one, a token goes to its own bytes where the target has a token for them, and where it has been seen
    to belong otherwise.
    """
    if (first.source_size, first.target_size) != (second.source_size, second.target_size):
        raise ValueError(
            f"maps of {first.source_size} x {first.target_size} and {second.source_size} x {second.target_size} "
            "ids cannot be joined"
        )
    width = max(first.target_ids.shape[1], second.target_ids.shape[1])
    first, second = _widened(first, width), _widened(second, width)
    kept = (first.weights > 0).any(axis=1, keepdims=True)
    return VocabMap(
        np.where(kept, first.target_ids, second.target_ids),
        np.where(kept, first.weights, second.weights),
        first.target_size,
    )


def completed(exact: VocabMap, source: Tokenizer, first: Callable[[bytes], int | None]) -> VocabMap:
    """The exact map, with a row of one entry for each token that it leaves out.

    Args:
        exact: [Vs] ids of `source` into the target's.
        source: the tokenizer that is mapped.
        first: the target's token for the bytes of a token; None leaves its row empty.
    """
    target_ids = np.full((exact.source_size, 1), -1, np.int32)
    for id in np.flatnonzero(exact.target_ids[:, 0] < 0).tolist():
        token = first(source.surfaces[id] or b"")
        target_ids[id] = -1 if token is None else token
    return hybrid_map(exact, VocabMap(target_ids, (target_ids >= 0).astype(np.float32), exact.target_size))


def _widened(map: VocabMap, width: int) -> VocabMap:
    missing = ((0, 0), (0, width - map.target_ids.shape[1]))
    ids = np.pad(map.target_ids, missing, constant_values=-1)
    return VocabMap(ids, np.pad(map.weights, missing), map.target_size)


def _complete(request: MapRequest, learned: VocabMap) -> VocabMap:
    return hybrid_map(EXACT.learn(request), sharpened(learned, request.parameters.temperature))


METHOD = Method(
    "exact where the bytes coincide, eva for the rest",
    EVA.learn,
    costly=True,
    learns=True,
    base="eva",
    complete=_complete,
)
