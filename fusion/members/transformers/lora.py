"""LoRA adapters of one model, several in one forward pass: every row runs with its own.

The factors of all adapters that change a layer lie side by side, so that a layer costs two further multiplications
however many adapters there are. What a row's tokens make of the other adapters' columns is multiplied by 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from alignment.files import open_tensors
from fusion.members.adapters import AdapterFile, Factors, require_fits

Columns = tuple[tuple[str, int, float], ...]
"""The adapters of a layer in order, each with its rank and scaling: what its columns are multiplied by."""


class Adapters:
    """The adapters of a model by name, and which of them the rows of the present pass run with."""

    def __init__(self, model: Any, files: Mapping[str, AdapterFile]) -> None:
        """Wrap the linear layers that any adapter changes. Raises ConfigError for one of another model."""
        self.names = tuple(files)
        self.nbytes = 0
        self._place = {name: 1 + index for index, name in enumerate(files)}  # 0: none
        self._tables: dict[Columns, Tensor] = {}
        self._scales: dict[tuple[Columns, bool], Tensor] = {}
        self._rows: Tensor | None = None
        self._scored: Tensor | None = None
        self._device = model.device
        self._head = model.get_output_embeddings()
        modules = dict(model.named_modules())
        for file in files.values():
            require_fits(file, model)
        tensors = {name: _tensors(file, model.device, model.dtype) for name, file in files.items()}
        for name in dict.fromkeys(layer for file in files.values() for layer in file.layers):
            own = {one: file.layers[name] for one, file in files.items() if name in file.layers}
            module = modules[name]
            module.forward = self._wrapped(module.forward, own, tensors, is_head=module is self._head)

    def select(
        self, rows: Sequence[str | None], counts: Sequence[int] | None = None, scored: Tensor | None = None
    ) -> None:
        """Say which adapter each row of the next pass runs with.

        With `counts` the rows stand one after the other in one line, so many tokens each, and the output layer
        sees the tokens at `scored` [K]; without, each is a row of a padded batch.
        """
        self._scales = {}
        self._rows = None
        self._scored = scored
        if any(row is not None for row in rows):
            places = torch.tensor([0 if row is None else self._place[row] for row in rows], device=self._device)
            if counts is not None:
                places = places.repeat_interleave(torch.tensor(counts, device=self._device))
            self._rows = places if counts is not None else places[:, None]

    def scales(self, columns: Columns, *, is_head: bool) -> Tensor | None:
        """The factors of a layer's columns in this pass, [N, R] or [B, 1, R]; None where no row has an adapter.

        Of the output layer [K, R], where that sees some of the tokens.
        """
        if self._rows is None:
            return None
        if (columns, is_head) not in self._scales:
            rows = self._rows if self._scored is None or not is_head else self._rows[self._scored]
            self._scales[columns, is_head] = self._tables[columns][rows]
        return self._scales[columns, is_head]

    def _wrapped(
        self,
        inner: Callable[[Tensor], Tensor],
        own: Mapping[str, Factors],
        tensors: Mapping[str, dict[str, Tensor]],
        *,
        is_head: bool,
    ) -> _Adapted:
        columns: Columns = tuple((name, one.rank, one.scaling) for name, one in own.items())
        down = torch.cat([tensors[name][one.down] for name, one in own.items()])
        up = torch.cat([tensors[name][one.up] for name, one in own.items()], dim=1)
        if columns not in self._tables:
            table = down.new_zeros(1 + len(self.names), len(down))
            at = 0
            for name, rank, scaling in columns:
                table[self._place[name], at : at + rank] = scaling
                at += rank
            self._tables[columns] = table
        self.nbytes += down.nbytes + up.nbytes
        return _Adapted(inner, down, up, columns, self, is_head=is_head)


class _Adapted:
    """A linear layer and its adapters: x [..., in] -> inner(x) + up (scales * (down x)) [..., out]."""

    def __init__(
        self,
        inner: Callable[[Tensor], Tensor],
        down: Tensor,
        up: Tensor,
        columns: Columns,
        adapters: Adapters,
        *,
        is_head: bool,
    ) -> None:
        self._inner = inner
        self._down = down
        self._up = up
        self._columns = columns
        self._adapters = adapters
        self._is_head = is_head

    def __call__(self, x: Tensor) -> Tensor:
        scales = self._adapters.scales(self._columns, is_head=self._is_head)
        if scales is None:
            return self._inner(x)
        if x.dim() < scales.dim():  # some layers see the tokens of all rows in one line
            scales = scales[:, 0].repeat_interleave(len(x) // len(scales), dim=0)
        return self._inner(x) + linear(linear(x, self._down) * scales, self._up)


def _tensors(file: AdapterFile, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    with open_tensors(file.file) as content:
        return {name: content.get_tensor(name).to(device, dtype) for name in content.keys()}  # noqa: SIM118
