"""Maps: how a member's vocabulary reaches the pivot's, where an answer begins and further on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignment.vocab_map import VocabMap


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Maps:
    """A member's vocabulary maps into the pivot's, None where it shares the pivot's vocabulary.

    The first token of an answer may carry the space that a template such as Llama-2's puts before the answer.
    `first` is used while neither the member nor the pivot has spelled that space, `unled` when the pivot alone
    has, `rest` from then on.
    """

    first: VocabMap | None = None
    unled: VocabMap | None = None
    rest: VocabMap | None = None

    def sources(self, targets: Sequence[int], size: int) -> NDArray[np.int64]:
        """The member's ids below `size` that go to none but these ids of the pivot."""
        wanted = np.asarray(targets, dtype=np.int64)
        if not len(wanted):
            return wanted
        if self.rest is None:
            return wanted[(wanted >= 0) & (wanted < size)]
        found = np.zeros(size, np.bool_)
        for map in {id(one): one for one in (self.first, self.unled, self.rest) if one is not None}.values():
            hit = np.isin(map.target_ids, wanted)
            only: NDArray[np.bool_] = np.any(hit, axis=1) & np.all(hit | (map.target_ids < 0), axis=1)
            found |= only[:size] if len(only) >= size else np.pad(only, (0, size - len(only)))
        return np.flatnonzero(found)


def identity(size: int, *, padded: int, joined: Collection[int], end: int, masked: Collection[int] | None) -> Maps:
    """The maps of a member with the pivot's tokenizer: every id to itself, but for ends and what is masked.

    Args:
        size: of the tokenizer's vocabulary.
        padded: of the model's, which may be larger.
        joined: ids that go to `end`.
        masked: ids that go nowhere, and the padding with them; None masks nothing.
    """
    ids = np.arange(max(size, padded), dtype=np.int32)
    if masked is not None:
        ids[list(masked)] = -1
        ids[size:] = -1
    ids[list(joined)] = end
    own = VocabMap(ids[:, None], (ids[:, None] >= 0).astype(np.float32), len(ids))
    return Maps(own, own, own)
