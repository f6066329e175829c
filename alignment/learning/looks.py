"""First looks at inner products: fast products of two tables, and how far they may be off.

What matters of the products of two vocabularies is a handful in a row. So a look says how high all of them can be,
and only those that can matter are computed again (`inner_products`). Some processors multiply whole numbers of 8
bits in a quarter of the time of float32, and others are slower at it: both are tried.
"""

from __future__ import annotations

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 1e-5
"""More than what an inner product of unit rows in float32 is off by."""

_SMALLEST = 1 << 26  # products below which trying both costs more than the faster one saves
_WORTH = 0.7  # of the time of float32: a look in 8 bits leaves more to be computed again
_PAIRS = 1 << 16


@dataclass(frozen=True, slots=True)
class Square:
    """Products of b target rows with p source rows.

    Attributes:
        rows: [p] int64, the source rows.
        values: [b, p]; times `unit`, no further from the products than `error`. Valid until the next square.
        unit: [b] float32.
        error: [b] float32.
    """

    rows: Tensor
    values: Tensor
    unit: Tensor
    error: Tensor

    def least(self, products: Tensor) -> Tensor:
        """What `values` that stand for at least these products [b] are not below, in the type of `values`."""
        values = products / self.unit
        return values if self.values.is_floating_point() else values.floor_().to(self.values.dtype)


class Look(ABC):
    """Products of target rows [Vt, m] with source rows [Vs, m], float32, in squares of at most `side` rows."""

    side: int

    @abstractmethod
    def squares(self, start: int) -> Iterator[Square]:
        """The products of the `side` target rows from `start` on, a multiple of `side`, with all source rows."""


class FloatLook(Look):
    """In float32, off by rounding alone."""

    def __init__(self, source: Tensor, target: Tensor, side: int) -> None:
        self.side = side
        self._source, self._target = source, target
        self._space = source.new_empty(side * side)

    def squares(self, start: int) -> Iterator[Square]:
        """As `Look.squares`."""
        block = self._target[start : start + self.side]
        unit, error = block.new_ones(len(block)), block.new_full((len(block),), ROUNDING)
        rows = torch.arange(len(self._source), device=block.device)
        for some in torch.split(rows, self.side):
            part = self._source[some[0] : some[-1] + 1]
            values = torch.mm(block, part.mT, out=self._space[: len(block) * len(part)].view(len(block), -1))
            yield Square(some, values, unit, error)


class ByteLook(Look):
    """In whole numbers of 8 bits, on a CPU.

    Target rows have a unit each. The source rows of a square share one, and are ordered by what each would need.
    Both tables are turned by one random rotation first, which leaves their products alone and spreads the numbers
    of a row evenly. By the triangle and the Cauchy-Schwarz inequality a product is off by no more than
    |x - x'| |z| + |x'| |z - z'|, where x' and z' are the rows as they were rounded.
    """

    def __init__(self, source: Tensor, target: Tensor, side: int) -> None:
        self.side = side
        turn = _rotation(source.shape[1])
        turned = source @ turn
        self._order = torch.split(turned.abs().amax(dim=1).argsort(), side)
        self._source = [_Rounded.of(turned[rows], shared=True) for rows in self._order]
        self._target = [_Rounded.of(block @ turn, shared=False) for block in torch.split(target, side)]
        self._space = torch.empty(side * side, dtype=torch.int32)

    def squares(self, start: int) -> Iterator[Square]:
        """As `Look.squares`."""
        block = self._target[start // self.side]
        for rows, part in zip(self._order, self._source, strict=True):
            values = _whole_products(block.values, part.values, self._space)
            longest, furthest = part.length.max(), part.off.max()
            error = furthest * block.length + (longest + furthest) * block.off + ROUNDING
            yield Square(rows, values, block.unit * part.unit, error)

    @staticmethod
    def is_exact(width: int, side: int) -> bool:
        """Whether this processor adds up the largest numbers right; some saturate at 16 bits on the way."""
        largest = torch.full((side, width), 127, dtype=torch.int8)
        found = _whole_products(largest, largest, torch.empty(side * side, dtype=torch.int32))
        return bool((found == 127 * 127 * width).all())


@dataclass(frozen=True, slots=True)
class _Rounded:
    """Rows x [n, m] as `unit` (a number, or [n]) times `values` [n, m] int8; `off` [n] is the length of what that
    leaves of each row, `length` [n] of all of it."""

    values: Tensor
    unit: Tensor
    off: Tensor
    length: Tensor

    @classmethod
    def of(cls, rows: Tensor, *, shared: bool) -> _Rounded:
        """Rows [n, m] float32 in the smallest units that they fit into: one for all of them, or one each."""
        highest = rows.abs().amax(dim=(0, 1) if shared else 1)
        unit = (highest / 127).clamp_(min=torch.finfo(torch.float32).tiny)
        values = (rows / unit[..., None]).round_()
        off = torch.linalg.vector_norm(rows - values * unit[..., None], dim=1)
        return cls(values.to(torch.int8), unit, off, torch.linalg.vector_norm(rows, dim=1))


def choose(source: Tensor, target: Tensor, side: int) -> Look:
    """The faster look, at source [Vs, m] and target [Vt, m], both float32 on one device."""
    plain = FloatLook(source, target, side)
    if source.device.type != "cpu" or len(source) * len(target) < _SMALLEST:
        return plain
    if not ByteLook.is_exact(source.shape[1], side):
        return plain
    rough = ByteLook(source, target, side)
    return rough if _seconds(rough) < _WORTH * _seconds(plain) else plain


def inner_products(source: Tensor, target: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """source[rows[i]] . target[columns[i]] for every i, [n] float32. `columns` must ascend."""
    if source.device.type == "cpu":
        ends = torch.searchsorted(columns, torch.arange(len(target) + 1))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            wanted = torch.sparse_csr_tensor(
                ends, rows, source.new_zeros(len(rows)), (len(target), len(source)), check_invariants=False
            )
        found: Tensor = torch.sparse.sampled_addmm(wanted, target, source.mT, beta=0.0).values()
        return found
    parts = zip(torch.split(rows, _PAIRS), torch.split(columns, _PAIRS), strict=True)
    return torch.cat([torch.linalg.vecdot(source[some], target[others]) for some, others in parts])


def _rotation(width: int) -> Tensor:
    """A random rotation [width, width] float32, always the same."""
    turn: Tensor = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0))).Q
    return turn


def _whole_products(block: Tensor, part: Tensor, space: Tensor) -> Tensor:
    """block @ part' of int8 in int32, [len(block), len(part)]."""
    out = space[: len(block) * len(part)].view(len(block), -1)
    torch._int_mm(block, part.mT, out=out)
    return out


def _seconds(look: Look) -> float:
    """Of the first square; the best of a few, because what else runs here can only add to it."""
    taken = []
    for _ in range(4):
        begun = time.perf_counter()
        next(look.squares(0))
        taken.append(time.perf_counter() - begun)
    return min(taken)
