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
from functools import cache

import torch
from torch import Tensor

_WORTH = 0.7  # of the time of float32: a look in 8 bits leaves more to be computed again
_SQUARES = 64  # fewer are done before it is known what is faster
_LARGEST = 1 << 30  # more than any product of rows in 8 bits, up to a width of 66,000
_GATHERED = 1 << 24  # numbers of each table that are gathered at a time, where pairs have to be


def rounding(width: int) -> float:
    """More than what an inner product of unit rows of this width in float32 is off by."""
    return width * 2.0**-23


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
        """What `values` that stand for at least these products [b] are not below, in the type of `values`.

        Up to the rounding of float32, which `error` has room for.
        """
        values = products / self.unit
        if self.values.is_floating_point():
            return values
        return values.floor_().clamp_(-_LARGEST, _LARGEST).to(self.values.dtype)


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
        # torch may have been told to multiply float32 in fewer bits, of which bfloat16 has the fewest.
        self._error = rounding(source.shape[1]) if torch.get_float32_matmul_precision() == "highest" else 2.0**-7

    def squares(self, start: int) -> Iterator[Square]:
        """As `Look.squares`."""
        block = self._target[start : start + self.side]
        unit, error = block.new_ones(len(block)), block.new_full((len(block),), self._error)
        every = torch.arange(len(self._source), device=block.device)
        for rows, part in zip(torch.split(every, self.side), torch.split(self._source, self.side), strict=True):
            values = torch.mm(block, part.mT, out=self._space[: len(block) * len(part)].view(len(block), -1))
            yield Square(rows, values, unit, error)


class ByteLook(Look):
    """In whole numbers of 8 bits, on a CPU.

    Target rows have a unit each. The source rows of a square share one, and are ordered by what each would need.
    By the triangle and the Cauchy-Schwarz inequality a product is off by no more than
    |x - x'| |z| + |x'| |z - z'|, where x' and z' are the rows as they were rounded; `rounding` is added for what
    float32 takes. The more evenly the numbers of a row are spread, the less that is.
    """

    def __init__(self, source: Tensor, target: Tensor, side: int) -> None:
        self.side = side
        self._order = torch.split(torch.linalg.vector_norm(source, ord=torch.inf, dim=1).argsort(), side)
        self._source = [_Rounded.of(source[rows], shared=True) for rows in self._order]
        self._target = [_Rounded.of(block, shared=False) for block in torch.split(target, side)]
        self._space = torch.empty(side * side, dtype=torch.int32)
        self._rounding = rounding(source.shape[1])

    def squares(self, start: int) -> Iterator[Square]:
        """As `Look.squares`."""
        block = self._target[start // self.side]
        for rows, part in zip(self._order, self._source, strict=True):
            values = _whole_products(block.values, part.values, self._space)
            longest, furthest = part.length.max(), part.off.max()
            error = furthest * block.length + (longest + furthest) * block.off + self._rounding
            yield Square(rows, values, block.unit * part.unit, error)


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
    width = source.shape[1]
    pays = (
        source.device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and len(source) * len(target) > _SQUARES * side * side
        and bytes_are_exact(width, side)
        and bytes_are_faster(width, side)
    )
    return (ByteLook if pays else FloatLook)(source, target, side)


@cache
def bytes_are_exact(width: int, side: int) -> bool:
    """Whether this processor adds up the largest numbers of 8 bits right; some saturate at 16 bits on the way."""
    largest = torch.full((side, width), 127, dtype=torch.int8)
    found = _whole_products(largest, largest, torch.empty(side * side, dtype=torch.int32))
    return bool((found == 127 * 127 * width).all())


@cache
def bytes_are_faster(width: int, side: int) -> bool:
    """Whether products of 8 bits take so much less time than those of float32 that they pay.

    The best of a few of each counts, because what else runs here can only add to it.
    """
    rows, space = torch.ones(side, width), torch.empty(side, side)
    whole, whole_space = rows.to(torch.int8), torch.empty(side * side, dtype=torch.int32)
    in_float32, in_bytes = float("inf"), float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        torch.mm(rows, rows.mT, out=space)
        between = time.perf_counter()
        _whole_products(whole, whole, whole_space)
        ended = time.perf_counter()
        in_float32, in_bytes = min(in_float32, between - begun), min(in_bytes, ended - between)
    return in_bytes < _WORTH * in_float32


def inner_products(source: Tensor, target: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """source[rows[i]] . target[columns[i]] for every i, [n] float32.

    rows, columns: [n] int64; `columns` ascend, and pairs may repeat.
    """
    if source.device.type == "cpu":
        # Neither that the ids of a row ascend nor that each is there once is needed for this product.
        _warn_of_csr_once()
        ends = torch.searchsorted(columns, torch.arange(len(target) + 1))
        nothing, shape = source.new_zeros(len(rows)), (len(target), len(source))
        wanted = torch.sparse_csr_tensor(ends, rows, nothing, shape, check_invariants=False)
        found: Tensor = torch.sparse.sampled_addmm(wanted, target, source.mT, beta=0.0).values()
        return found
    count = max(1, _GATHERED // source.shape[1])
    parts = zip(torch.split(rows, count), torch.split(columns, count), strict=True)
    return torch.cat([torch.linalg.vecdot(source[some], target[others]) for some, others in parts])


@cache
def _warn_of_csr_once() -> None:
    """Let torch say, unheard, that it may change sparse tensors, which it says once in a process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), dtype=torch.float32)


def _whole_products(block: Tensor, part: Tensor, space: Tensor) -> Tensor:
    """block [b, m] @ part' [m, p] of int8 in int32, [b, p], written into `space` [at least b p]."""
    out = space[: len(block) * len(part)].view(len(block), -1)
    torch._int_mm(block, part.mT, out=out)
    return out
