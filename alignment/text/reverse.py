"""Reverse: the ids of a vocabulary that stand for given bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property, lru_cache

from alignment.text.continuation import Continuation

_REMEMBERED = 1 << 16  # first tokens of texts


class Reverse:
    """From bytes to the ids of one tokenizer that stand for them.

    `surfaces` and `byte_ids` are those of `alignment.text.tokenizer.Tokenizer`, `continuation` is how it spells.
    """

    def __init__(
        self, surfaces: Sequence[bytes | None], byte_ids: Sequence[int | None], continuation: Continuation
    ) -> None:
        self.surfaces = surfaces
        self.byte_ids = byte_ids
        self._continuation = continuation
        self._first_tokens = lru_cache(_REMEMBERED)(self._first_token)

    @cached_property
    def doubles(self) -> dict[int, list[int]]:
        """By id, the others that stand for the same bytes: byte tokens of characters that have a token, mostly."""
        same: defaultdict[bytes, list[int]] = defaultdict(list)
        for id, surface in enumerate(self.surfaces):
            if surface:
                same[surface].append(id)
        several = [ids for ids in same.values() if len(ids) > 1]
        return {id: [other for other in ids if other != id] for ids in several for id in ids}

    @cached_property
    def ids_by_surface(self) -> dict[bytes, int]:
        """The id of each surface: of several the one that a text is read in, which the model knows.

        Where that says nothing the first, a token for a single byte only where there is no other.
        """
        byte_tokens = {id for id in self.byte_ids if id is not None}
        ids: dict[bytes, int] = {}
        for id in sorted(range(len(self.surfaces)), key=byte_tokens.__contains__):
            if surface := self.surfaces[id]:
                ids.setdefault(surface, id)
        for surface in {surface for id in self.doubles if (surface := self.surfaces[id])}:
            with suppress(UnicodeDecodeError):
                spelled = self._continuation.encode(surface.decode())
                if len(spelled) == 1 and self.surfaces[spelled[0]] == surface:
                    ids[surface] = spelled[0]
        return ids

    def longest_beginning(self, data: bytes) -> int | None:
        """The id whose surface is the longest that `data` begins with; None where there is none."""
        ids = self.ids_by_surface
        return next((ids[data[:size]] for size in range(len(data), 0, -1) if data[:size] in ids), None)

    def first_token(self, data: bytes) -> int | None:
        """The first id of this tokenizer's own spelling of `data`, as a continuation of other text.

        The longest beginning where that spelling does not begin with the bytes (some have no token), or `data` is
        no text. None where there is neither.
        """
        return self._first_tokens(data)

    def _first_token(self, data: bytes) -> int | None:
        try:
            ids = self._continuation.encode(data.decode())
        except UnicodeDecodeError:
            ids = []
        surface = self.surfaces[ids[0]] if ids else None
        return ids[0] if surface and data.startswith(surface) else self.longest_beginning(data)
