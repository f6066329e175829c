"""Ends: the pivot's tokens that end a sequence, and those that must not."""

from __future__ import annotations

from fusion.ensemble import View
from fusion.options import SamplingParams

NONE: frozenset[int] = frozenset()


class Ends:
    """The ends of the sequences that share a pivot and sampling parameters. Ids are the pivot's.

    Attributes:
        named: control tokens among the stop strings, with their texts.
        wanted: ids that the request itself wants to stop at, by id or by name.
        ids: those that end the sequence.
        kept: those of the wanted that are special tokens, which would be masked.
        distinct: whether the request distinguishes the pivot's ends: by a bias, or by stopping at some alone.
    """

    def __init__(self, view: View, sampling: SamplingParams) -> None:
        """Find them in the pivot's vocabulary."""
        own = view.stop_ids
        self.named = view.tokenizer.control_tokens(sampling.stop) if sampling.stop else {}
        self.wanted = frozenset([*sampling.stop_token_ids, *self.named])
        self.kept = (self.wanted & view.tokenizer.special_ids) - view.ends - own if view.masked else NONE
        self.ids = self.wanted if sampling.ignore_eos else own | self.wanted
        self._ignored = own - self.wanted if sampling.ignore_eos else NONE
        self._least, self._early = sampling.min_tokens, own | self.wanted
        preferred = bool(sampling.logit_bias) and not own.isdisjoint(sampling.logit_bias)
        self.distinct = preferred or (sampling.ignore_eos and not own.isdisjoint(self.wanted))

    def forbidden(self, length: int) -> frozenset[int]:
        """The ids that must not be drawn after so many tokens."""
        # An end token that the request itself wants to stop at is not ignored.
        return self._early if length < self._least else self._ignored
