"""Hybrid maps: exact where the bytes coincide, learned for the tokens that the exact map leaves out."""

from __future__ import annotations

import numpy as np

from alignment.methods.eva import METHOD as EVA
from alignment.methods.exact import METHOD as EXACT
from alignment.methods.method import MapRequest, Method
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


def _widened(map: VocabMap, width: int) -> VocabMap:
    missing = ((0, 0), (0, width - map.target_ids.shape[1]))
    ids = np.pad(map.target_ids, missing, constant_values=-1)
    return VocabMap(ids, np.pad(map.weights, missing), map.target_size)


def _complete(request: MapRequest, learned: VocabMap) -> VocabMap:
    return hybrid_map(EXACT.learn(request), learned)


METHOD = Method(
    "exact where the bytes coincide, eva for the rest",
    lambda request: _complete(request, EVA.learn(request)),
    costly=True,
    learns=True,
    base="eva",
    complete=_complete,
)
