"""The map for the first token of an answer, made of the one for running text."""

from __future__ import annotations

from functools import partial

import numpy as np

from alignment.methods.exact import exact_map
from alignment.methods.hybrid import hybrid_map
from alignment.text.tokenizer import Tokenizer
from alignment.vocab_map import VocabMap


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
    by_bytes = partial(exact_map, source_stops=(), target_stop=0, source_lead=source_lead, target_lead=target_lead)
    exact = by_bytes(source, target)
    stays = np.arange(target.vocabulary_size, dtype=np.int32)
    begins = by_bytes(target, target).target_ids[:, 0]
    is_text = np.array([surface is not None for surface in target.surfaces])
    begins = np.where(is_text, begins, stays)
    ids = np.where(running.target_ids < 0, -1, begins[running.target_ids])
    for slot in range(1, ids.shape[1]):
        # " a" and "a" may now be one token: the better of the two entries counts.
        ids[(ids[:, :slot] == ids[:, slot, None]).any(axis=1), slot] = -1
    return hybrid_map(exact, VocabMap(ids, np.where(ids < 0, 0, running.weights), running.target_size))
