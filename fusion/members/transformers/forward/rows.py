"""The engine's cache as the cache object of transformers, for models whose attention stays as it is.

Rows of unequal lengths are padded on the left, which every causal model of transformers understands: new tokens
end at one column, and the mask hides what lies before a row's first. Only real tokens are ever written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from fusion.members.transformers.cache.kv import KVCache
from fusion.members.transformers.forward.base import Part

State = dict[tuple[int, str, int], Tensor]
"""What a sequence's recurrent layers keep: by layer, kind and number, a tensor of batch size 1."""

_KINDS = ("conv_states", "recurrent_states")


class Rows:
    """One padded batch: B rows, `width` new tokens, `longest` cached tokens with them.

    Attributes:
        ids: [B, width]; 0 in the padding, as are `positions`.
        positions: [B, width], of each token in its own text.
        mask: [B, longest], 1 for a row's own tokens.
    """

    def __init__(self, parts: list[Part], cache: KVCache, device: torch.device) -> None:
        self.width = max(len(part.ids) for part in parts)
        self.longest = max(part.length for part in parts)
        self._cache = cache
        padded = [[0] * (self.width - len(part.ids)) + part.ids for part in parts]
        self.ids = torch.tensor(padded, device=device)
        bounds = torch.tensor([[part.start, part.length, len(part.ids)] for part in parts], device=device)
        start, length, count = bounds.T[:, :, None]
        column, place = torch.arange(self.width, device=device), torch.arange(self.longest, device=device)
        real = column >= self.width - count
        position = length - self.width + column
        own = place >= self.longest - length
        self.positions = position.clamp(min=0)
        self.mask = own.long()
        self._real = real.flatten().nonzero()[:, 0]
        self._slots = (start + position)[real]
        # Padding reads the first position of the cache, which always holds numbers; the mask hides it.
        self._places = torch.where(own, start + length - self.longest + place, 0).flatten()
        self._only = parts[0] if len(parts) == 1 else None

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the real ones of key and value [B, kv_heads, width, dim]; returns [B, kv_heads, longest, dim]."""
        keys, values = self._cache.write(layer, self._flat(key), self._flat(value), self._slots)
        return self._gather(keys), self._gather(values)

    def _flat(self, tensor: Tensor) -> Tensor:
        return tensor.transpose(0, 1).flatten(1, 2).index_select(1, self._real)

    def _gather(self, tensor: Tensor) -> Tensor:
        if self._only is not None:
            return tensor[None, :, self._only.start : self._only.start + self._only.length]
        heads, _, dim = tensor.shape
        # A third of the time of indexing with brackets.
        rows = tensor.index_select(1, self._places)
        return rows.view(heads, len(self.ids), self.longest, dim).transpose(0, 1)


class AttentionLayer(DynamicLayer):  # type: ignore[misc]
    """A layer of keys and values."""

    def __init__(self, index: int, rows: Rows) -> None:
        super().__init__()
        self._index = index
        self._rows = rows
        self._length = rows.longest - rows.width

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the new keys and values; return all of them."""
        self._length = self._rows.longest
        return self._rows.write(self._index, key_states, value_states)

    def get_seq_length(self) -> int:
        """Tokens cached, padding included."""
        return self._length


class HybridLayer(LinearAttentionLayer, AttentionLayer):  # type: ignore[misc]
    """A layer that keeps a recurrent state beside keys and values."""

    is_compileable = False

    def __init__(self, index: int, rows: Rows, number_of_states: int) -> None:
        AttentionLayer.__init__(self, index, rows)
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)


class RowCache(Cache):  # type: ignore[misc]
    """The cache of one forward pass.

    Attributes:
        attends: whether any layer keeps keys and values.
    """

    def __init__(self, config: Any, rows: Rows) -> None:
        """Raises NotImplementedError for a layer that keeps anything but keys, values and recurrent states."""
        self._rows = len(rows.ids)
        stock = DynamicCache(config=config).layers
        super().__init__([_layer(one, index, rows) for index, one in enumerate(stock)])
        self.attends = any(isinstance(layer, AttentionLayer) for layer in self.layers)

    def load(self, states: list[State]) -> None:
        """Continue from the states of the rows."""
        for index, kind, number in states[0]:
            key = (index, kind, number)
            tensor = torch.cat([state[key] for state in states])
            layer: Any = self.layers[index]
            layer.device, layer.dtype = tensor.device, tensor.dtype
            getattr(layer, kind)[number] = tensor
            getattr(layer, f"is_{kind}_initialized")[number] = True
            if kind == "conv_states":
                layer.conv_kernel_size[number] = tensor.shape[-1]
                layer.has_previous_state[number] = True

    def states(self) -> list[State]:
        """The states of the rows after the pass; they share no memory with the cache."""
        found: State = {}
        for index, layer in enumerate(self.layers):
            if isinstance(layer, LinearAttentionCacheLayerMixin):
                for kind in _KINDS:
                    held: dict[int, Tensor | None] = getattr(layer, kind)
                    found |= {(index, kind, number): one for number, one in held.items() if one is not None}
        return [{key: one[row : row + 1].clone() for key, one in found.items()} for row in range(self._rows)]


def _layer(stock: Any, index: int, rows: Rows) -> Any:
    """Ours for a layer of transformers."""
    if isinstance(stock, LinearAttentionCacheLayerMixin):
        if isinstance(stock, DynamicLayer):
            return HybridLayer(index, rows, stock.number_of_states)
        return LinearAttentionLayer(number_of_states=stock.number_of_states)
    if type(stock) not in (DynamicLayer, DynamicSlidingWindowLayer):
        raise NotImplementedError(f"its cache has layers of kind {type(stock).__name__}")
    return AttentionLayer(index, rows)
