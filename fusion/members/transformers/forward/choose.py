"""The ways to run a model, fastest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

from fusion.members.transformers.architecture import takes_no_padding, why_not_packed
from fusion.members.transformers.cache.kv import KVCache
from fusion.members.transformers.forward.base import Forward
from fusion.members.transformers.forward.packed import PackedForward
from fusion.members.transformers.forward.padded import PaddedForward
from fusion.members.transformers.forward.stateful import StatefulForward
from fusion.members.transformers.forward.states import OwnStates, RowStates
from fusion.members.transformers.forward.uncached import WholeForward


def paths(model: Any) -> Iterator[Callable[[KVCache], Forward]]:
    """Yield a factory for each path worth trying; taking the next one restores the model's own attention."""
    if why_not_packed(model) is None:
        yield partial(PackedForward, model)
        model.set_attn_implementation("eager")
    if _keeps_states(model):
        yield lambda cache: StatefulForward(RowStates(model, cache), continues=True)
        yield lambda cache: StatefulForward(RowStates(model, cache), continues=False)
    else:
        if not takes_no_padding(model):
            yield partial(PaddedForward, model, batched=True)
        yield partial(PaddedForward, model, batched=False)
    yield lambda cache: StatefulForward(OwnStates(model), continues=True)
    yield lambda cache: StatefulForward(OwnStates(model), continues=False)
    yield lambda cache: WholeForward(model)


def _keeps_states(model: Any) -> bool:
    layers = DynamicCache(config=model.config).layers
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)
