"""Two embedding tables in one space: supervised VecMap, as EVA uses it (arXiv 2404.09492, section 3.2).

The linear algebra on [d, d] matrices is done in float64, what touches whole tables in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.errors import ConfigError

_CHUNK = 4096
# Directions in which the anchors spread less than this share of the widest one carry rounding, not meaning.
_RANK_TOLERANCE = 1e-6
_REWEIGHT = 0.5


def map_together(source: Tensor, target: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Bring both tables into the directions they share.

    source: [Vs, d1] float32, target: [Vt, d2] float32, both overwritten. pairs: [P, 2] int64, rows that
    correspond; a pair listed twice counts twice. Returns [Vs, m] and [Vt, m], m = min(d1, d2), defined up to a
    rotation that both share: only inner products between the two mean anything.

    In order: rows to unit length, centred over the whole table, to unit length again; each side whitened by its
    anchor rows; turned by the orthogonal map between the whitened anchors, U S V' = svd(Xw' Zw); both sides
    weighted by S^0.5; de-whitened by their own statistics. Where the widths differ, U and V are the m columns
    that belong to singular values, so the wider table is projected on the m directions that the narrower one
    has a counterpart for; where they are equal, this is VecMap's result. Last, both are turned by one random
    rotation, always the same, which spreads the numbers of every row evenly: they are rounded to 8 bits next
    (`alignment.learning.looks`). Directions that the anchors leave empty
    (a dead column) are left out of the whitening instead of dividing by zero.

    Raises:
        ConfigError: a table, or its anchor rows, have no variance.
    """
    _normalise(source, "source")
    _normalise(target, "target")
    of_source, of_target, of_both = _products(source, target, pairs)
    x, z = _whitening(of_source, "source"), _whitening(of_target, "target")
    covariance = x.root_inverse @ of_both @ z.root_inverse
    u, s, vt = torch.linalg.svd(covariance, full_matrices=False)
    normal = torch.randn(len(s), len(s), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(normal).Q.to(s.device)
    return source @ _transform(x, u, s, rotation), target @ _transform(z, vt.mT, s, rotation)


def unit_(table: Tensor) -> Tensor:
    """Scale the rows of `table` to unit length in place; rows of zeros stay."""
    norms = torch.linalg.vector_norm(table, dim=1, keepdim=True)
    return table.div_(norms.masked_fill_(norms == 0, 1))


def _normalise(table: Tensor, side: str) -> None:
    unit_(table)
    table -= table.mean(dim=0)
    if float(torch.linalg.vector_norm(table, dim=1).max()) < _RANK_TOLERANCE:
        raise ConfigError(
            f"All {side} embeddings point the same way, so nothing can be learned from them: "
            "check that the table is that of a trained model."
        )
    unit_(table)


@dataclass(frozen=True, slots=True)
class _Whitening:
    """(A'A)^(-1/2) and (A'A)^(1/2) of anchor rows A, [d, d] float64."""

    root_inverse: Tensor
    root: Tensor


def _whitening(gram: Tensor, side: str) -> _Whitening:
    """That of anchor rows A, by A'A."""
    values, vectors = torch.linalg.eigh(gram)
    spread = values.clamp(min=0).sqrt()
    used = spread > _RANK_TOLERANCE * spread[-1]
    if not used.any():
        raise ConfigError(
            f"The {side} embeddings of the anchors are all zero, so nothing can be learned from them: "
            "check that the table is that of a trained model."
        )
    spread, vectors = spread[used], vectors[:, used]
    return _Whitening((vectors / spread) @ vectors.mT, (vectors * spread) @ vectors.mT)


def _products(source: Tensor, target: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """X'X, Z'Z and X'Z of the anchor rows X and Z, float64."""
    d1, d2 = source.shape[1], target.shape[1]
    of_source, of_target, of_both = (
        source.new_zeros(shape, dtype=torch.float64) for shape in ((d1, d1), (d2, d2), (d1, d2))
    )
    for chunk in torch.split(pairs, _CHUNK):
        x, z = source[chunk[:, 0]].double(), target[chunk[:, 1]].double()
        of_source.addmm_(x.mT, x)
        of_target.addmm_(z.mT, z)
        of_both.addmm_(x.mT, z)
    return of_source, of_target, of_both


def _transform(side: _Whitening, turn: Tensor, s: Tensor, rotation: Tensor) -> Tensor:
    """Whitening, turn, weights, de-whitening and rotation of one side as one matrix, [d, m] float32."""
    return ((side.root_inverse @ turn) * s**_REWEIGHT @ (turn.mT @ side.root @ turn) @ rotation).float()
