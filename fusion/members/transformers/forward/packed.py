"""The fast path: the tokens of all parts in one line, through attention of our own."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from fusion.members.transformers.cache.kv import KVCache
from fusion.members.transformers.forward.attention import IMPLEMENTATION, Packed, Row, runs
from fusion.members.transformers.forward.base import Forward, Part


class PackedForward(Forward):
    """One forward pass of [1, N] ids, so no layer computes padding; implements `forward.Forward`.

    Attention (`attention.packed_attention`) sees each row's cache through views; rolling back takes no work.
    """

    path = "packed"
    in_cache = True

    def __init__(self, model: Any, cache: KVCache) -> None:
        """Replace the model's attention for good."""
        model.set_attn_implementation(IMPLEMENTATION)
        self._model = model
        self._cache = cache
        self._few_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def run(self, parts: list[Part]) -> tuple[list[int], Tensor | None]:
        """As `Forward.run`."""
        order, packed_runs = runs([Row(len(part.ids), part.length, part.start, part.size) for part in parts])
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        scored: list[int] = []
        for part in (parts[i] for i in order):
            ids += part.ids
            positions += range(part.first, part.length)
            slots += range(part.start + part.first, part.start + part.length)
            scored += [len(ids) - len(part.ids) + index for index in part.scored]
        # One tensor, one transfer. Something is always scored: a head of zero rows is not worth a special case.
        inputs = torch.tensor([ids, positions, slots], dtype=torch.long).to(self._model.device)
        keep = torch.tensor(scored or [0], dtype=torch.long, device=inputs.device)
        if self.adapters is not None:
            counts = [len(parts[i].ids) for i in order]
            self.adapters.select([parts[i].adapter for i in order], counts, keep if self._few_logits else None)
        logits = self._model(
            input_ids=inputs[:1],
            position_ids=inputs[1:2],
            use_cache=False,
            packed=Packed(self._cache, inputs[2], packed_runs),
            **({"logits_to_keep": keep} if self._few_logits else {}),
        ).logits[0]
        if not self._few_logits:  # a model of its own code, which would have let the argument pass
            logits = logits[keep]
        return order, logits.float() if scored else None
