"""Held-out accuracy: the share of correspondences withheld from learning that a learned map finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from alignment.errors import ConfigError
from alignment.learning.anchors import anchors_of
from alignment.methods.eva import learnable
from alignment.methods.registry import METHODS, Alignment

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out accuracy: number of anchors, the share found as the best entry of their row, and as any entry."""

    anchors: int
    best: float
    any: float


def held_out(
    alignment: Alignment,
    share: float,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    on_progress: Callable[[float], None] | None = None,
) -> HeldOut:
    """Learn from all anchors but `share` of them, drawn with `seed`, and look up where the map sends those.

    They are ordinary tokens that both vocabularies have, so for tokens that only one has this is an estimate from
    above: their counterparts are less alike.

    Raises:
        ConfigError: the method learns nothing from embeddings, or there are no anchors to spare.
    """
    if not METHODS[alignment.method].learns:
        usable = " or ".join(name for name, method in METHODS.items() if method.learns)
        raise ConfigError(f"{alignment.method} learns nothing from anchors that could be held out; use {usable}.")
    source, target = alignment.source.tokenizer, alignment.target.tokenizer
    pairs = anchors_of(source, target)
    pairs = pairs[np.isin(pairs[:, 0], learnable(source)) & np.isin(pairs[:, 1], learnable(target))]
    held = pairs[np.random.default_rng(seed).permutation(len(pairs))[: round(share * len(pairs))]]
    if not len(held):
        raise ConfigError(f"A share of {share:g} of {len(pairs)} anchors is none: hold out more of them.")
    learner = alignment.kept or alignment
    learned = learner.learn(without=held[:, 0].tolist(), device=device, on_progress=on_progress)
    ids, weights = learned.target_ids[held[:, 0]], learned.weights[held[:, 0]]
    right = (ids == held[:, 1:]) & (weights > 0)
    best = right[np.arange(len(held)), weights.argmax(axis=1)]
    return HeldOut(len(held), float(best.mean()), float(right.any(axis=1).mean()))
