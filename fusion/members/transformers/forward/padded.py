"""The portable path: the model's own attention over padded batches, its cache object backed by ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fusion.members.transformers.cache.kv import KVCache
from fusion.members.transformers.forward.base import Forward, Part
from fusion.members.transformers.forward.rows import RowCache, Rows

PADDING_LIMIT = 2
"""A batch may hold this many times the tokens that its rows do, in what it computes and in what it reads."""

CACHE_ARGUMENTS = ("cache_params", "past_key_values", "cache")
"""What `forward` calls its cache object; transformers 5.24 renamed the first two to the last."""


class PaddedForward(Forward):
    """Forward passes through the model as it is; implements `forward.Forward`.

    Keys and values lie in the engine's cache, so that rolling back takes no work.
    """

    in_cache = True

    def __init__(self, model: Any, cache: KVCache, *, batched: bool) -> None:
        self.path = "padded" if batched else "one by one"
        self._call = ModelCall(model, cache, batched=batched)
        self._batched = batched

    def run(self, parts: list[Part]) -> tuple[list[int], Tensor | None]:
        """As `Forward.run`."""
        order: list[int] = []
        found: list[Tensor] = []
        for batch in batches(parts, lambda part: not self._batched):
            order += batch
            if self.adapters is not None:
                self.adapters.select([parts[i].adapter for i in batch])
            logits, _ = self._call([parts[i] for i in batch])
            found += logits
        found = [rows for rows in found if len(rows)]
        return order, torch.cat(found) if found else None


class ModelCall:
    """Runs a padded batch through a model, with the arguments that it takes."""

    def __init__(self, model: Any, cache: KVCache, *, batched: bool) -> None:
        self._model = model
        self._cache = cache
        takes = inspect.signature(model.forward).parameters
        self._cache_argument = next((name for name in CACHE_ARGUMENTS if name in takes), "past_key_values")
        # A model that is given a whole row knows its positions, which a few count in a way of their own.
        self._positions = batched and "position_ids" in takes
        self._few_logits = "logits_to_keep" in takes

    def __call__(
        self, parts: list[Part], prepare: Callable[[RowCache], None] | None = None
    ) -> tuple[list[Tensor], RowCache]:
        """The logits [scored, V] float32 of each part, and the cache as it is afterwards.

        `prepare` is given the cache before the pass.
        """
        rows = Rows(parts, self._cache, self._model.device)
        cache = RowCache(self._model.config, rows)
        if prepare is not None:
            prepare(cache)
        arguments: dict[str, Any] = {self._cache_argument: cache, "use_cache": True}
        if cache.attends:
            arguments["attention_mask"] = rows.mask
        if self._positions:
            arguments["position_ids"] = rows.positions
        # Rows end at one column; the last `most` columns hold everything that is asked for.
        most = max((len(part.ids) - part.scored[0] for part in parts if part.scored), default=1)
        if self._few_logits:
            arguments["logits_to_keep"] = most
        logits = self._model(input_ids=rows.ids, **arguments).logits[:, -most:]
        wanted = [[most - len(part.ids) + index for index in part.scored] for part in parts]
        return [logits[row, columns].float() for row, columns in enumerate(wanted)], cache


def batches(parts: list[Part], alone: Callable[[Part], bool]) -> list[list[int]]:
    """Cut parts (given by index) into forward passes of similar ones; those that must be `alone` get their own."""
    result: list[list[int]] = []
    for i in sorted(range(len(parts)), key=lambda i: (len(parts[i].ids), parts[i].length)):
        if result and not alone(parts[i]) and not alone(parts[result[-1][-1]]):
            together = [parts[j] for j in (*result[-1], i)]
            counts, lengths = [len(part.ids) for part in together], [part.length for part in together]
            if all(len(sizes) * max(sizes) <= PADDING_LIMIT * sum(sizes) for sizes in (counts, lengths)):
                result[-1].append(i)
                continue
        result.append([i])
    return result
