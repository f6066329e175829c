"""States: two ways to hand them to a model, inside our cache object or as the object that the model makes."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor

from fusion.members.transformers.cache.kv import KVCache
from fusion.members.transformers.forward.base import Part
from fusion.members.transformers.forward.padded import CACHE_ARGUMENTS, ModelCall
from fusion.members.transformers.forward.rows import State


class RowStates:
    """States as tensors beside the keys and values in the engine's cache; implements `stateful.Step`."""

    kind = "with states"
    together = True

    def __init__(self, model: Any, cache: KVCache) -> None:
        self._call = ModelCall(model, cache, batched=True)

    def __call__(self, parts: list[Part], states: list[State]) -> tuple[list[Tensor], list[State]]:
        """As `Step.__call__`."""
        logits, after = self._call(parts, lambda cache: cache.load(states) if states else None)
        return logits, after.states()


class OwnStates:
    """One sequence at a time over the object that the model returns; implements `stateful.Step`.

    Where that holds keys and values, every checkpoint is a copy of them all.
    """

    kind = "over its own cache"
    together = False

    def __init__(self, model: Any) -> None:
        takes = inspect.signature(model.forward).parameters
        self._argument = next((name for name in ("state", *CACHE_ARGUMENTS) if name in takes), "past_key_values")
        self._few_logits = "logits_to_keep" in takes
        self._positions = "position_ids" in takes
        self._model = model

    def __call__(self, parts: list[Part], states: list[Any]) -> tuple[list[Tensor], list[Any]]:
        """As `Step.__call__`."""
        (part,) = parts
        arguments = {self._argument: copy.deepcopy(states[0])} if states else {}
        most = len(part.ids) - part.scored[0] if part.scored else 1
        if self._few_logits:
            arguments["logits_to_keep"] = most
        ids = torch.tensor([part.ids], device=self._model.device)
        if self._positions:
            arguments["position_ids"] = torch.arange(part.first, part.length, device=ids.device)[None]
            arguments["attention_mask"] = torch.ones(1, part.length, dtype=torch.long, device=ids.device)
        output = self._model(input_ids=ids, use_cache=True, **arguments)
        logits = output.logits[0, -most:][[index - part.scored[0] for index in part.scored]]
        return [logits.float()], [output[self._argument]]
