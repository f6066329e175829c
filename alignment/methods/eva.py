"""The eva method: learned from the embeddings of two checkpoints (arXiv 2404.09492)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from alignment.errors import ConfigError
from alignment.learning.anchors import anchors_of
from alignment.methods.exact import exact_map
from alignment.methods.method import MapRequest, Method
from alignment.text.characters import is_whole
from alignment.text.tokenizer import Tokenizer
from alignment.vocab_map import VocabMap

if TYPE_CHECKING:
    import torch


def learnable(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Ids that a map is learned about, ascending: whole characters, no byte tokens that double another token."""
    byte_ids = set(tokenizer.byte_ids)
    ordinary = {surface for id, surface in enumerate(tokenizer.surfaces) if surface and id not in byte_ids}
    ids = [
        id
        for id, surface in enumerate(tokenizer.surfaces)
        if surface and is_whole(surface) and not (id in byte_ids and surface in ordinary)
    ]
    return np.array(ids, np.int64)


def eva_map(
    source: Tokenizer,
    target: Tokenizer,
    source_embeddings: NDArray[np.float32],
    target_embeddings: NDArray[np.float32],
    *,
    source_stops: Collection[int],
    target_stop: int,
    top: int = 10,
    threshold: float = 0.1,
    without: Collection[int] = (),
    device: str | torch.device = "cpu",
    on_progress: Callable[[float], None] | None = None,
) -> VocabMap:
    """Learn the map of one tokenizer's ids into another's, [Vs, R], laid out as that of `exact_map`.

    Only tokens that stand for whole characters are learned from and learned about. Special tokens and the padding
    of the tables neither shift the mean, nor act as hubs, nor take places. Nor do parts of characters, which mean
    nothing by themselves, and byte tokens of characters that have a token, which a model never sees. All of these
    have the rows of `alignment.methods.exact.exact_map`: every id of `source_stops` maps onto `target_stop`, a
    part of a character onto the same bytes, other special tokens onto nothing. Anchors are
    `alignment.learning.anchors.anchors_of`, but for those of the source ids in `without`.

    source_embeddings: [at least the ids of `source` that are in use, d1]; target_embeddings likewise, [.., d2].
    Raises ConfigError as `learn_map` does.
    """
    exact = exact_map(source, target, source_stops=source_stops, target_stop=target_stop)
    sources, targets = np.setdiff1d(learnable(source), list(source_stops)), learnable(target)
    _check_rows(sources, source_embeddings, f"source tokenizer {source.name}")
    _check_rows(targets, target_embeddings, f"target tokenizer {target.name}")
    pairs = anchors_of(source, target)
    pairs = pairs[np.isin(pairs[:, 0], np.setdiff1d(sources, list(without))) & np.isin(pairs[:, 1], targets)]
    from alignment.eva import learn_map  # needs torch

    learned = learn_map(
        source_embeddings[sources],
        target_embeddings[targets],
        np.stack([np.searchsorted(sources, pairs[:, 0]), np.searchsorted(targets, pairs[:, 1])], axis=1),
        top=top,
        threshold=threshold,
        device=device,
        on_progress=on_progress,
    )
    ids = np.full((source.vocabulary_size, learned.target_ids.shape[1]), -1, np.int32)
    weights = np.zeros(ids.shape, np.float32)
    ids[:, :1], weights[:, :1] = exact.target_ids, exact.weights
    ids[sources] = np.where(learned.target_ids < 0, -1, targets[learned.target_ids])
    weights[sources] = learned.weights
    return VocabMap(ids, weights, target.vocabulary_size)


def _check_rows(ids: NDArray[np.int64], embeddings: NDArray[np.float32], whose: str) -> None:
    highest = int(ids.max(initial=-1))
    if np.ndim(embeddings) != 2 or highest >= len(embeddings):
        raise ConfigError(
            f"The {whose} has ids up to {highest}, but the embeddings are of shape {np.shape(embeddings)}: "
            "use the embeddings that belong to the tokenizer."
        )


def sharpened(map: VocabMap, temperature: float | None) -> VocabMap:
    """The map with rows softmax(scores / temperature), which sum to 1; itself where the temperature is None.

    EVA's scores of a row differ little, and sum to anything from 0 to 5: as they are they spread a token over
    tokens that are merely near it, and weigh members by how many entries their tokens have.
    """
    if temperature is None:
        return map
    used = map.weights > 0
    scores = np.where(used, map.weights, 0).astype(np.float64)
    shares = np.where(used, np.exp((scores - scores.max(axis=1, keepdims=True)) / temperature), 0)
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return VocabMap(map.target_ids, shares.astype(np.float32), map.target_size)


def _complete(request: MapRequest, learned: VocabMap) -> VocabMap:
    return sharpened(learned, request.parameters.temperature)


def _learn(request: MapRequest) -> VocabMap:
    parameters = request.parameters
    tables = [side.embeddings(parameters.embeddings).read() for side in (request.source, request.target)]
    return request.by(
        eva_map,
        *tables,
        top=parameters.top,
        threshold=parameters.threshold,
        without=request.without,
        device=request.device,
        on_progress=request.on_progress,
    )


METHOD = Method(
    "a token goes to those whose embeddings are near, learned from the tokens both have",
    _learn,
    costly=True,
    learns=True,
    complete=_complete,
)
