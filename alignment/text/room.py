"""Room: the tokens of a prompt that stay where it has too many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from alignment.text.boundaries import Indices


@dataclass(frozen=True, slots=True)
class Room:
    """At most so many `tokens` (at least 1) of a prompt stay; those beyond are taken from its `side`."""

    tokens: int
    side: Literal["left", "right"] = "left"

    def kept(self, ids: Sequence[int], bos: int | None) -> Indices:
        """The indices of the tokens that stay. `bos`, which a tokenizer begins every text with, is among them."""
        if len(ids) <= self.tokens:
            return np.arange(len(ids))
        first = 1 if ids[0] == bos and self.tokens > 1 else 0
        count = self.tokens - first
        begin = len(ids) - count if self.side == "left" else first
        return np.concatenate([np.arange(first), np.arange(begin, begin + count)])
