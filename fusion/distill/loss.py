"""Fusion loss: cross-entropy on the text and on sparse target distributions (FuseChat, arXiv 2408.07990).

The student's row over the vocabulary is read twice, by one logsumexp and one gather; targets stay k entries wide.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch

Loss = Literal["ce", "kl"]

PADDING = -1
"""The id of an entry that is not there."""

REST = -2
"""The id of the entry that holds the mass of all tokens without an entry of their own."""

IGNORED = -100
"""The label of a position that is not learned from."""


def fusion_loss(
    logits: Any,
    labels: Any,
    probabilities: Any,
    ids: Any,
    *,
    loss: Loss = "ce",
    lm_weight: float = 0.9,
    positions: int | None = None,
) -> tuple[Any, Any, Any]:
    """(total, lm, fusion), with total = lm_weight * lm + (1 - lm_weight) * fusion, in nats per position.

    Both are means over the positions t < L-1 of the batch with labels[t+1] != -100. lm is the cross-entropy of
    logits[t] with labels[t+1]; fusion compares logits[t] with target[t], which already is the distribution of the
    next token. Nothing of the size of a dense target is built; half-precision logits are computed in float32.

    Args:
        logits: [B,L,V], a torch tensor (total is then one too, and differentiable) or numpy (computed in float64).
        labels: [B,L] int, -100 where nothing is learned.
        probabilities: [B,L,K], from `targets.target_probabilities`.
        ids: [B,L,K] int; -1 pads. `REST` stands for all tokens without an entry in that row.
        loss: "ce", the soft cross-entropy -sum p log q, or "kl", KL(target || student). They differ by the
            target's entropy and so have one gradient.
        lm_weight: the published 0.9, in [0, 1].
        positions: divide by this count and not by the batch's own; with gradient accumulation, the count of the
            whole step over the number of batches.

    Raises:
        ValueError: shapes do not fit, or no position is left to learn from.
    """
    if loss not in get_args(Loss):
        raise ValueError(f"loss must be one of {', '.join(get_args(Loss))}, not {loss!r}")
    if not 0 <= lm_weight <= 1:
        raise ValueError(f"lm_weight must lie in [0, 1], not {lm_weight}")
    student = logits if isinstance(logits, torch.Tensor) else torch.tensor(np.asarray(logits), dtype=torch.float64)
    if student.dtype in (torch.float16, torch.bfloat16):
        student = student.float()
    targets = _like(labels, student.device, torch.int64)
    mass = _like(probabilities, student.device, student.dtype)
    names = _like(ids, student.device, torch.int64)
    _check_shapes(student, targets, mass, names)

    following = targets[:, 1:]
    learned = following != IGNORED
    count = int(learned.sum()) if positions is None else positions
    if count <= 0:
        raise ValueError("no position has a label: leave out sequences without an answer")
    mass, names = mass[:, :-1], names[:, :-1]
    # One gather for labels and targets and no slice of the logits: each would cost the backward pass a copy.
    wanted = torch.nn.functional.pad(torch.cat([following[..., None], names], dim=-1), (0, 0, 0, 1))
    scores = student.gather(-1, wanted.clamp(min=0)) - student.logsumexp(dim=-1, keepdim=True)
    lm = -torch.where(learned, scores[:, :-1, 0], 0.0).sum() / count
    scores = scores[:, :-1, 1:]
    if (names == REST).any():
        scores = _with_rest(scores, names)
    counts = (mass > 0) & (names != PADDING) & learned[..., None]
    # Padding is left out before multiplying: 0 * -inf is not a number, nor is its gradient.
    cost = -mass * torch.where(counts, scores, 0.0)
    if loss == "kl":
        cost = cost + torch.where(counts, torch.xlogy(mass, mass), 0.0)
    fusion = torch.where(counts, cost, 0.0).sum() / count
    total = lm_weight * lm + (1 - lm_weight) * fusion
    if isinstance(logits, torch.Tensor):
        return total, lm, fusion
    return total.item(), lm.item(), fusion.item()


def _with_rest(scores: torch.Tensor, names: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [...,K] where `REST` has the log of what the student gives to tokens without an entry."""
    listed = torch.where(names >= 0, scores, -torch.inf).logsumexp(dim=-1, keepdim=True)
    left = -torch.expm1(listed)
    smallest = torch.finfo(scores.dtype).eps
    return torch.where(names == REST, left.clamp(min=smallest).log(), scores)


def _like(values: Any, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of its own; targets are constants, so no gradient leads into them."""
    if isinstance(values, torch.Tensor):
        return values.detach().to(device=device, dtype=dtype)
    return torch.tensor(np.asarray(values), device=device, dtype=dtype)


def _check_shapes(logits: torch.Tensor, labels: torch.Tensor, mass: torch.Tensor, ids: torch.Tensor) -> None:
    if logits.ndim != 3 or labels.shape != logits.shape[:2] or mass.ndim != 3 or mass.shape[:2] != labels.shape:
        raise ValueError(
            "logits [B,L,V], labels [B,L] and probabilities [B,L,K] must agree in B and L, not "
            f"{tuple(logits.shape)}, {tuple(labels.shape)}, {tuple(mass.shape)}"
        )
    if ids.shape != mass.shape:
        raise ValueError(f"ids {tuple(ids.shape)} and probabilities {tuple(mass.shape)} must have one shape")
    largest = int(ids.max()) if ids.numel() else PADDING
    if max(largest, int(labels.max()) if labels.numel() else PADDING) >= logits.shape[-1]:
        raise ValueError(f"a label or target id is outside the student's vocabulary of {logits.shape[-1]} tokens")
