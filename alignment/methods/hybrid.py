"""Maps made of maps: one for the tokens another leaves out, and one for the first token of an answer."""

from __future__ import annotations

import numpy as np

from alignment.methods.exact import exact_map
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


def first_token_map(
    running: VocabMap, source: Tokenizer, target: Tokenizer, *, source_lead: bytes = b"", target_lead: bytes = b""
) -> VocabMap:
    """The map for the first token of an answer, made of the one for running text.

    Where a side's template glues a space to the first word, that side begins its answer with "▁Hello" where the
    other begins it with "Hello". Text tokens that are the same bytes without their leads go to each other. In the
    rows that are left, each target token makes way for the one that begins an answer with the same text, and is
    dropped where there is none. Rows of special tokens stay as they are.
    """
    if not (source_lead or target_lead):
        return running
    exact = exact_map(
        source, target, source_stops=(), target_stop=0, source_lead=source_lead, target_lead=target_lead
    )
    stays = np.arange(target.vocabulary_size, dtype=np.int32)
    begins = exact_map(
        target, target, source_stops=(), target_stop=0, source_lead=source_lead, target_lead=target_lead
    ).target_ids[:, 0]
    is_text = np.array([surface is not None for surface in target.surfaces])
    begins = np.where(is_text, begins, stays)
    ids = np.where(running.target_ids < 0, -1, begins[running.target_ids])
    for slot in range(1, ids.shape[1]):
        # " a" and "a" may now be one token: the better of the two entries speaks for it.
        ids[(ids[:, :slot] == ids[:, slot, None]).any(axis=1), slot] = -1
    return hybrid_map(exact, VocabMap(ids, np.where(ids < 0, 0, running.weights), running.target_size))


def _widened(map: VocabMap, width: int) -> VocabMap:
    missing = ((0, 0), (0, width - map.target_ids.shape[1]))
    ids = np.pad(map.target_ids, missing, constant_values=-1)
    return VocabMap(ids, np.pad(map.weights, missing), map.target_size)
