"""Keys and values of every open sequence, in one pair of tensors per layer."""

from __future__ import annotations

import torch
from torch import Tensor

from fusion.members.transformers.cache.arena import Move


class KVCache:
    """`keys[layer]` is [kv_heads, tokens, key_dim], `values[layer]` [kv_heads, tokens, value_dim].

    Memory is tokens x sum over layers of kv_heads x (key_dim + value_dim) x bytes per element. A layer is
    allocated in full when it is first written, which the engine's start-up check does: shapes are the ones
    that the model really produces (they may differ between layers).
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def write(self, layer: int, key: Tensor, value: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Store key and value [kv_heads, n, dim] at cache positions `slots` [n]; returns the whole layer."""
        if layer not in self.keys:
            # Zeros, not garbage: a masked position is multiplied by 0, and 0 x NaN would leak.
            self.keys[layer] = key.new_zeros((key.shape[0], self.tokens, key.shape[2]))
            self.values[layer] = value.new_zeros((value.shape[0], self.tokens, value.shape[2]))
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(1, slots, key)
        values.index_copy_(1, slots, value)
        return keys, values

    def apply(self, moves: list[Move]) -> None:
        """Carry out copies in order."""
        for tensor in (*self.keys.values(), *self.values.values()):
            for move in moves:
                source = tensor[:, move.source : move.source + move.length]
                if abs(move.source - move.target) < move.length:
                    source = source.clone()
                tensor[:, move.target : move.target + move.length] = source

    @torch.inference_mode()  # as they were written
    def erase(self, start: int, size: int) -> None:
        """Zero a range of positions."""
        for tensor in (*self.keys.values(), *self.values.values()):
            tensor[:, start : start + size] = 0

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(tensor.nbytes for tensor in (*self.keys.values(), *self.values.values()))
