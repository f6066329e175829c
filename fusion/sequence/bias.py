"""Bias: what a request's `logit_bias` means for its members, who are asked about what it favours or bans.

And the bitmasks of ids that a member may list: `both` and `with_ends`.
"""

from __future__ import annotations

import numpy as np

from fusion.ensemble import View
from fusion.options import FusionParams, SamplingParams
from fusion.sampling import BAN
from fusion.sequence.ends import Ends
from fusion.sequence.grammar_table import Bits


class Bias:
    """The ids that members name because they are favoured, and may not list because they are banned.

    A member with another tokenizer lists what is banned: what its list lacks would count as lost on the way into
    the pivot's vocabulary, and be given to what the pivot says.
    """

    def __init__(self, view: View, sampling: SamplingParams, fusion: FusionParams, ends: Ends) -> None:
        """Find them in the pivot's vocabulary."""
        self._view, self._ends = view, ends
        bias = sampling.logit_bias
        # A sum asks about its candidates in a second look.
        self._favoured = [] if fusion.sums else [id for id, value in bias.items() if value > 0]
        self._banned = [id for id, value in bias.items() if value <= BAN]
        self._known: dict[str, tuple[tuple[int, ...], Bits | None]] = {}
        self._is_empty = not bias

    def of(self, name: str) -> tuple[tuple[int, ...], Bits | None]:
        """The ids that a member is asked for, and the bitmask of those that it may list; None for all."""
        if self._is_empty:
            return (), None
        if name not in self._known:
            size, view = self._view.models[name].member.vocabulary_size, self._view
            maps = view.maps_of(name, distinct=self._ends.distinct, kept=self._ends.kept)
            out = maps.sources(self._banned if view.follows_ids(name) else (), size)
            allowed = None
            if len(out):
                mask = np.ones(size, np.bool_)
                mask[out] = False
                allowed = np.packbits(mask, bitorder="little")
            self._known[name] = tuple(maps.sources(self._favoured, size).tolist()), allowed
        return self._known[name]


def both(one: Bits, other: Bits | None) -> Bits:
    """The ids that are in both sets; those of the first alone where that leaves none, or there is no other."""
    if other is None:
        return one
    size = min(len(one), len(other))
    left = one[:size] & other[:size]
    return left if left.any() else one


def with_ends(mask: Bits, view: View, name: str) -> Bits:
    """A mask that admits the end as a member with the pivot's ids needs it: it may end with other ids."""
    others = [id for id in view.models[name].stop_ids if id not in view.stop_ids and id < 8 * len(mask)]
    if not others or not mask[view.end >> 3] >> (view.end & 7) & 1:
        return mask
    mask = mask.copy()
    for id in others:
        mask[id >> 3] |= 1 << (id & 7)
    return mask
