"""The portable path: the model's own attention over padded batches, its cache object backed by ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

from fusion.members.forward import Part
from fusion.members.kv_cache import KVCache
from fusion.members.row_cache import RowCache, Rows, State

CHECKPOINTS = 4
"""States kept per sequence: rollbacks of up to so many advances cost next to nothing."""

WASTE = 2
"""A batch may hold this many times the tokens that its rows do, in what it computes and in what it reads."""


@dataclass(slots=True)
class _Past:
    """What is kept of a sequence whose layers have states: its text, and the states at some of its lengths."""

    text: list[int] = field(default_factory=list)
    checkpoints: list[tuple[int, State]] = field(default_factory=list)


class PaddedForward:
    """Forward passes through the model as it is; implements `forward.Forward`.

    Keys and values lie in the engine's cache, so that rolling back sets a length. Recurrent states cannot be
    rolled back: the last few are kept, and what lies between the nearest and the new text is run again.
    """

    def __init__(self, model: Any, cache: KVCache, *, batched: bool) -> None:
        self.path = "padded" if batched else "one by one"
        self._model = model
        self._cache = cache
        self._batched = batched
        layers = DynamicCache(config=model.config).layers
        self._stateful = any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)
        self._past: dict[int, _Past] = {}
        takes = inspect.signature(model.forward).parameters
        self._cache_argument = "cache_params" if "cache_params" in takes else "past_key_values"
        # A model that is given a whole row knows its positions, which a few count in a way of their own.
        self._positions = batched and "position_ids" in takes
        self._few_logits = "logits_to_keep" in takes

    def run(self, parts: list[Part]) -> tuple[list[int], Tensor | None]:
        """As `Forward.run`."""
        if self._stateful:
            parts = [self._resumed(part) for part in parts]
        order: list[int] = []
        found: list[Tensor] = []
        for batch in batches(parts, alone=self._alone):
            order += batch
            found += self._run([parts[i] for i in batch])
        return order, torch.cat(found) if found else None

    def rollback(self, sequence: int, keep: int) -> None:
        """Drop the states beyond `keep`."""
        past = self._past.get(sequence)
        if past is not None:
            del past.text[keep:]
            past.checkpoints = [one for one in past.checkpoints if one[0] <= keep]

    def forget(self, sequence: int) -> None:
        """Drop text and states."""
        self._past.pop(sequence, None)

    def _alone(self, part: Part) -> bool:
        """Whether a part must have a forward pass to itself: a state would take padding in."""
        return not self._batched or (self._stateful and (len(part.ids) > 1 or part.first == 0))

    def _resumed(self, part: Part) -> Part:
        """The part from where there is a state to go on from."""
        past = self._past.setdefault(part.sequence, _Past())
        reached = past.checkpoints[-1][0] if past.checkpoints else 0
        again = past.text[reached : part.first]
        scored = [len(again) + index for index in part.scored]
        return replace(part, ids=again + part.ids, first=reached, scored=scored)

    def _run(self, parts: list[Part]) -> list[Tensor]:
        """One forward pass; the logits [scored, V] of each part that asks for any."""
        rows = Rows(parts, self._cache, self._model.device)
        cache = RowCache(self._model.config, rows)
        if self._stateful and parts[0].first:
            cache.load([self._past[part.sequence].checkpoints[-1][1] for part in parts])
        arguments: dict[str, Any] = {self._cache_argument: cache, "attention_mask": rows.mask, "use_cache": True}
        if self._positions:
            arguments["position_ids"] = rows.positions
        # Rows end at one column; the last `most` columns hold everything that is asked for.
        most = max((len(part.ids) - part.scored[0] for part in parts if part.scored), default=1)
        if self._few_logits:
            arguments["logits_to_keep"] = most
        logits = self._model(input_ids=rows.ids, **arguments).logits[:, -most:]
        if self._stateful:
            for part, state in zip(parts, cache.states(), strict=True):
                past = self._past[part.sequence]
                past.text[part.first :] = part.ids
                past.checkpoints = [*past.checkpoints[1 - CHECKPOINTS :], (part.length, state)]
        return [
            logits[row, [most - len(part.ids) + index for index in part.scored]].float()
            for row, part in enumerate(parts)
            if part.scored
        ]


def batches(parts: list[Part], alone: Callable[[Part], bool]) -> list[list[int]]:
    """Cut parts (given by index) into forward passes of similar ones; those that must be `alone` get their own."""
    result: list[list[int]] = []
    for i in sorted(range(len(parts)), key=lambda i: (len(parts[i].ids), parts[i].length)):
        if result and not alone(parts[i]) and not alone(parts[result[-1][-1]]):
            together = [parts[j] for j in (*result[-1], i)]
            counts, lengths = [len(part.ids) for part in together], [part.length for part in together]
            if all(len(sizes) * max(sizes) <= WASTE * sum(sizes) for sizes in (counts, lengths)):
                result[-1].append(i)
                continue
        result.append([i])
    return result
