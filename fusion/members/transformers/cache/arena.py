"""Arena: positions of each sequence's tokens in a cache of fixed size. Bookkeeping only; `kv` moves the tensors.

Every sequence owns one contiguous extent, so attention reads its cache through a view and never gathers it.
Extents are powers of two laid at multiples of their size while there is room: sequences of similar length then
lie at regular distances, and one strided view covers many of them (`attention.runs`). When no such place is
left, all extents are compacted. That makes the bound exact: any sequences whose tokens together are within the
arena fit, whatever was opened and closed before.
"""

from __future__ import annotations

from dataclasses import dataclass

SMALLEST_EXTENT = 64


class ArenaFullError(Exception):
    """The tokens asked for, with those that all other sequences hold, are more than the arena has."""


@dataclass(slots=True)
class Extent:
    """`size` tokens from `start` on belong to one sequence; `used` of them are reserved."""

    start: int
    size: int
    used: int


@dataclass(frozen=True, slots=True)
class Move:
    """Copy `length` tokens from `source` to `target`; the two may overlap."""

    source: int
    target: int
    length: int


class Arena:
    """Extents of `tokens` cache positions, one per open sequence; `used` of them are reserved."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.extents: dict[int, Extent] = {}
        self.used = 0

    def reserve(self, sequence: int, length: int, keep: int) -> list[Move]:
        """Give a sequence room for `length` tokens, of which its first `keep` are cached already.

        Returns the copies to make, in this order, before the cache is used again. Raises ArenaFullError, with
        nothing changed.
        """
        extent = self.extents.get(sequence)
        used = self.used + length - (extent.used if extent else 0)
        if used > self.tokens:
            raise ArenaFullError
        self.used = used
        if extent is not None and length <= extent.size:
            extent.used = length
            return []
        size = max(SMALLEST_EXTENT, 1 << (length + length // 4).bit_length())
        start = self._first_fit(size)
        if start is None:
            return self._lay_out_anew(sequence, length, keep)
        self.extents[sequence] = Extent(start, size, length)
        return [Move(extent.start, start, keep)] if extent is not None and keep else []

    def release(self, sequence: int) -> None:
        """Take a sequence's extent back, if it has one."""
        extent = self.extents.pop(sequence, None)
        if extent is not None:
            self.used -= extent.used

    def _first_fit(self, size: int) -> int | None:
        """The lowest free place for `size` tokens at a multiple of `size`."""
        start = 0
        for extent in sorted(self.extents.values(), key=lambda extent: extent.start):
            if start + size <= extent.start:
                break
            start = max(start, -(-(extent.start + extent.size) // size) * size)
        return start if start + size <= self.tokens else None

    def _lay_out_anew(self, sequence: int, length: int, keep: int) -> list[Move]:
        """Pack all extents in their present order, sharing what is free among them.

        Order is kept, so this order of copies overwrites nothing that is still to be copied: those that move
        down, lowest first, then those that move up, highest first.
        """
        old = dict(self.extents)
        order = sorted(old, key=lambda owner: old[owner].start)
        if sequence not in old:
            order.append(sequence)
        used = {owner: length if owner == sequence else old[owner].used for owner in order}
        equal = self.tokens // len(order)
        share = (self.tokens - sum(used.values())) // len(order)
        regular = max(used.values()) <= equal
        start = 0
        moves = []
        for owner in order:
            size = equal if regular else used[owner] + share
            self.extents[owner] = Extent(start, size, used[owner])
            copied = keep if owner == sequence else used[owner]
            if owner in old and copied:
                moves.append(Move(old[owner].start, start, copied))
            start += size
        down = [move for move in moves if move.target < move.source]
        up = [move for move in moves if move.target > move.source]
        return down + up[::-1]
