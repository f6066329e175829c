"""Anchors: tokens of two vocabularies that are known to mean the same, because they stand for the same bytes."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from alignment.text.tokenizer import Tokenizer


def anchors_of(source: Tokenizer, target: Tokenizer) -> NDArray[np.int64]:
    """Pairs (source id, target id) [P, 2] with equal surfaces, by source id; each id occurs once.

    Special tokens have no surface and are no anchors. A surface that two ordinary tokens of one vocabulary share
    is ambiguous and left out; a `<0xXX>` byte token stands back behind the ordinary token of its surface.
    """
    of_target = _unambiguous(target)
    pairs = [(id, of_target[s]) for s, id in _unambiguous(source).items() if s in of_target]
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def _unambiguous(tokenizer: Tokenizer) -> dict[bytes, int]:
    """The id of each surface that is spelled in one way."""
    byte_ids = set(tokenizer.byte_ids)
    ordinary = [(surface, id) for id, surface in enumerate(tokenizer.surfaces) if surface and id not in byte_ids]
    bytes_ = [(bytes([byte]), id) for byte, id in enumerate(tokenizer.byte_ids) if id is not None]
    times = Counter(surface for surface, _ in ordinary)
    ids = {surface: id for surface, id in ordinary if times[surface] == 1}
    return ids | {surface: id for surface, id in bytes_ if surface not in times}
