"""Attention of a packed batch over cached sequences, as an attention implementation of transformers.

A forward pass holds the tokens of all rows one after another ([1, N] ids), so every layer but attention costs
exactly the tokens there are. Here each token meets only the cache of its own row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from fusion.members.engine import DECODING_TOKENS
from fusion.members.transformers.cache.kv import KVCache

IMPLEMENTATION = "tutti"


class UnsupportedAttentionError(Exception):
    """The model asks for a kind of attention that this implementation does not compute."""


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence in a forward pass: `count` new tokens, `length` cached tokens once they are written.

    Its cache is the extent of `size` tokens at `start`.
    """

    count: int
    length: int
    start: int
    size: int


@dataclass(slots=True)
class Run:
    """Rows that one strided view of the cache covers: equal counts, starts at equal distances.

    Attributes:
        stride: distance of neighbouring starts, in tokens.
        lengths: cached tokens per row, the new ones included.
    """

    count: int
    start: int
    stride: int
    lengths: list[int]
    _masks: dict[int | None, tuple[int, bool, Tensor | None]] = field(default_factory=dict)

    def mask(
        self, window: int | None, device: torch.device, dtype: torch.dtype
    ) -> tuple[int, bool, Tensor | None]:
        """Return the attention mask of the new tokens, for a sliding window of `window` tokens or None.

        Returns (first, causal, mask): the cache position the view may begin at; whether plain causal masking
        says it all; and otherwise an additive mask [rows, 1, count, longest - first], None if nothing is hidden.
        """
        if window not in self._masks:
            self._masks[window] = self._make_mask(window, device, dtype)
        return self._masks[window]

    def _make_mask(
        self, window: int | None, device: torch.device, dtype: torch.dtype
    ) -> tuple[int, bool, Tensor | None]:
        longest, shortest = max(self.lengths), min(self.lengths)
        first = 0 if window is None else max(0, shortest - self.count + 1 - window)
        if longest == shortest and self.count == 1:
            return first, False, None
        if longest == shortest == self.count and (window is None or window >= longest):
            return first, True, None
        ends = torch.tensor(self.lengths, device=device)[:, None, None]
        query = ends - self.count + torch.arange(self.count, device=device)[None, :, None]
        key = torch.arange(first, longest, device=device)[None, None, :]
        hidden = key > query
        if window is not None:
            hidden |= key <= query - window
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
        return first, False, mask.masked_fill_(hidden, float("-inf"))[:, None]


def runs(rows: list[Row]) -> tuple[list[int], list[Run]]:
    """Order rows so that neighbours share a view, and cut them into runs.

    Returns the order (indices into `rows`) and the runs over rows in that order. A view never reaches beyond
    the extent of any of its rows: one sequence's cache can never touch another's result.
    """
    order = sorted(range(len(rows)), key=lambda i: (rows[i].count, rows[i].start))
    found: list[Run] = []
    room = 0
    for i in order:
        row = rows[i]
        if found and found[-1].count == row.count:
            run = found[-1]
            distance = row.start - run.start - run.stride * (len(run.lengths) - 1)
            room = min(room, row.size)
            if (len(run.lengths) == 1 or distance == run.stride) and max(*run.lengths, row.length) <= room:
                run.stride = distance
                run.lengths.append(row.length)
                continue
        found.append(Run(row.count, row.start, 0, [row.length]))
        room = row.size
    return order, found


@dataclass(slots=True)
class Packed:
    """One forward pass: N tokens of several rows, laid out as `runs` says, written to cache positions `slots`."""

    cache: KVCache
    slots: Tensor
    runs: list[Run]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: Packed,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Write keys and values [1, kv_heads, N, dim] to the cache and attend; query is [1, heads, N, dim].

    The signature is that of transformers' attention functions. Returns [1, N, heads, dim]. Raises
    UnsupportedAttentionError for options that change the result and are not implemented here.
    """
    for name in ("position_bias", "s_aux", "indices", "block_indices"):
        if extra.get(name) is not None:
            raise UnsupportedAttentionError(name)
    if attention_mask is not None:
        raise UnsupportedAttentionError("attention_mask")
    if extra.get("is_causal") is False:
        raise UnsupportedAttentionError("is_causal=False")
    layer: int = module.layer_idx  # type: ignore[assignment]
    keys, values = packed.cache.write(layer, key[0], value[0], packed.slots)
    heads, width = query.shape[1], values.shape[2]
    outputs = []
    position = 0
    for run in packed.runs:
        rows, count = len(run.lengths), run.count
        first, causal, mask = run.mask(sliding_window, query.device, query.dtype)
        longest = max(run.lengths) - first
        q = query[0, :, position : position + rows * count].reshape(heads, rows, count, -1).transpose(0, 1)
        k = _view(keys, run, rows, first, longest)
        v = _view(values, run, rows, first, longest)
        if softcap is None:
            out = _attention(q, k, v, mask, causal, scaling)
        else:
            out = _softcapped_attention(q, k, v, mask, causal, scaling, softcap)
        outputs.append(out.transpose(1, 2).reshape(rows * count, heads, width))
        position += rows * count
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None], None


def _view(tensor: Tensor, run: Run, rows: int, first: int, length: int) -> Tensor:
    """The run's part of a layer [kv_heads, tokens, dim] as [rows, kv_heads, length, dim], without a copy."""
    heads, tokens, dim = tensor.shape
    return tensor.as_strided(
        (rows, heads, length, dim), (run.stride * dim, tokens * dim, dim, 1), (run.start + first) * dim
    )


def _attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scaling: float | None
) -> Tensor:
    """Attention of q [rows, heads, count, dim] over k and v [rows, kv_heads, length, dim]; shaped as q is.

    Few queries whose heads share keys and values count as that many more queries of one head: these are read once,
    and not once for each head, which decoding waits for.
    """
    rows, heads, count, dim = q.shape
    shared = heads // k.shape[1]
    if shared == 1 or causal or count > DECODING_TOKENS:
        return scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=shared > 1
        )
    q = q.reshape(rows, k.shape[1], shared * count, dim)
    if mask is not None and count > 1:
        mask = mask.repeat(1, 1, shared, 1)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling).reshape(
        rows, heads, count, v.shape[-1]
    )


def _softcapped_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scaling: float | None, softcap: float
) -> Tensor:
    """Attention with scores squeezed into (-softcap, softcap) by tanh (Gemma 2, section 2)."""
    rows, heads, count, dim = q.shape
    grouped = q.reshape(rows, k.shape[1], heads // k.shape[1], count, dim)
    scores = grouped @ k[:, :, None].transpose(-1, -2) * (dim**-0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    if causal:
        hidden = torch.ones(count, count, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    elif mask is not None:
        scores = scores + mask[:, None]
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return (weights @ v[:, :, None]).reshape(rows, heads, count, v.shape[-1])


# No mask function is registered under this name: transformers then builds no masks at all.
AttentionInterface.register(IMPLEMENTATION, packed_attention)
