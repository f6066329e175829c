"""Weights of the members in the fused distribution: given, or PackLLM's from the prompt (arXiv 2404.11531).

Pure functions of losses; where these come from is said in `fusion.prompt.scoring`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fusion.core import Floats

GRID = 21  # the paper's line search: 0, 0.05, ... 1


def member_weights(members: Sequence[str], given: Mapping[str, float] | None) -> Floats:
    """Fixed weights [M] summing to 1 in the order of `members`, equal ones where none are given.

    Members that `given` does not name weigh nothing.
    """
    weights = np.array([1.0 if given is None else given.get(name, 0.0) for name in members], dtype=np.float64)
    weights /= weights.sum()
    return weights


def packllm_sim(losses: ArrayLike, tau: float = 1.0) -> Floats:
    """Weights [E] from each expert's mean loss on the prompt, in nats: softmax(-log PPL / tau) (PackLLM-sim)."""
    scores = -np.asarray(losses, dtype=np.float64)
    with np.errstate(over="ignore"):  # a small tau leaves the best one, or those that are equal to it
        weights: Floats = np.exp((scores - scores.max()) / tau)
    weights /= weights.sum()
    return weights


def packllm_opt(logits: ArrayLike, labels: ArrayLike, *, grid: int = GRID, ignore_id: int | None = None) -> Floats:
    """Weights [E] that make the experts' mean logits predict the prompt best, found greedily (PackLLM-opt).

    Args:
        logits: [E, T, V], expert e's raw logits for label t.
        labels: [T], the tokens that did come.
        grid: values of the line search from 0 to 1, ends included.
        ignore_id: labels of this id do not count; at least one other has to be there.

    Returns:
        The weights in the order in which the experts are given, whatever order they were added in.
    """
    scores, targets = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    counted = np.ones(len(targets), dtype=np.bool_) if ignore_id is None else targets != ignore_id
    scores, targets = scores[:, counted], targets[counted]
    losses = np.array([cross_entropy(expert, targets) for expert in scores])
    return greedy_weights(losses, lambda w: cross_entropy(np.tensordot(w, scores, 1), targets), grid=grid)


def greedy_weights(losses: Floats, fused_loss: Callable[[Floats], float], *, grid: int = GRID) -> Floats:
    """PackLLM-opt's search: begin with the best expert, add the others one by one in order of their losses [E].

    For each the grid gives the share of the weights so far that remains; the first of equal values wins, which
    favours the new expert. A value of 1 leaves it out, and later ones still get their turn.

    Args:
        fused_loss: the loss of the fusion with weights [E] that sum to 1.

    Returns:
        Weights [E] in the order of `losses`.
    """
    order = np.argsort(losses, kind="stable")
    weights = np.zeros(len(losses))
    weights[order[0]] = 1.0
    for expert in order[1:]:
        new = np.zeros(len(losses))
        new[expert] = 1.0
        mixes = [share * weights + (1 - share) * new for share in np.linspace(0, 1, grid)]
        weights = mixes[int(np.argmin([fused_loss(mix) for mix in mixes]))]
    return weights


def cross_entropy(logits: Floats, labels: NDArray[np.integer]) -> float:
    """Mean negative log-probability in nats of labels [T] under logits [T, V]."""
    highest = logits.max(axis=1)
    totals = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    return float((totals - logits[np.arange(len(labels)), labels]).mean())
