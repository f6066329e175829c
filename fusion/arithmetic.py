"""Model arithmetic: weighted sums of the members' log-probabilities, with weights of any sign.

Contrastive decoding (arXiv 2210.15097, 2309.09117), DExperts (2105.03023), proxy tuning (2401.08565),
classifier-free guidance (2306.17806) and context-aware decoding (2305.14739) are all such sums; they differ in who
the members are, in the weights, and in the mask that keeps tokens which one member finds implausible from winning.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax

Mask = tuple[Literal["plausibility", "nucleus", "top_k"], int, float]
Floats = NDArray[np.float64]


def combine(
    logits: ArrayLike, weights: ArrayLike, *, mask: Mask | None = None, temperature: float = 1.0
) -> Floats:
    """Final distributions: softmax of (sum over m of w_m log softmax(z_m)) / temperature over the kept tokens.

    Args:
        logits: [S,M,V], S steps of M members over one vocabulary; left unchanged, computed in float64. -inf
            excludes a token: it has probability 0 if any member of weight other than 0 excludes it, whatever the
            weight's sign, since -inf times a negative weight would be a reward.
        weights: [M] as given; a sum other than 1 acts as a temperature.
        mask: (kind, member, value), which tokens may win by the member's own distribution at temperature 1:
            "plausibility" keeps those of probability >= value * the largest; "nucleus" keeps, by falling
            probability, each whose preceding sum is <= value; "top_k" keeps the `value` largest, the lowest ids
            among equals.
        temperature: divides the sum, so it changes no greedy choice.

    Returns:
        Probabilities [S,V] float64, exactly 0 outside the mask.

    Raises:
        ValueError: no positive weight, a weight that is not finite, alpha or p outside [0, 1], k below 1, a member
            that is not there, temperature <= 0, logits that are NaN or +inf, or a step without any token left.
    """
    rows = np.asarray(logits, dtype=np.float64)
    factors = np.asarray(weights, dtype=np.float64)
    if rows.ndim != 3 or factors.shape != rows.shape[1:2]:
        raise ValueError(f"logits must be [S,M,V] and weights [M], not {rows.shape} and {factors.shape}")
    if not np.isfinite(factors).all():
        raise ValueError("every weight must be a finite number")
    if not (factors > 0).any():
        raise ValueError("at least one weight must be positive")
    if not temperature > 0 or not np.isfinite(temperature):
        raise ValueError(f"temperature must be a positive number, not {temperature}")
    if np.isnan(rows).any() or (rows == np.inf).any():
        raise ValueError("logits must be numbers below infinity")
    if (rows.max(axis=2, initial=-np.inf) == -np.inf).any():
        raise ValueError("every member must allow at least one token at every step")
    logs: Floats = log_softmax(rows, axis=2)
    kept = np.ones((len(rows), rows.shape[2]), dtype=bool) if mask is None else _kept(logs, mask)
    counting = factors != 0
    kept &= np.isfinite(logs[:, counting]).all(axis=1)
    if not kept.any(axis=1).all():
        raise ValueError("no token is left at a step: the members exclude everything that the mask keeps")
    total = np.zeros(kept.shape)
    for member in np.flatnonzero(counting):
        total += factors[member] * np.where(kept, logs[:, member], 0.0)
    scores = np.where(kept, total / temperature, -np.inf)
    scores -= scores.max(axis=1, keepdims=True)
    probabilities: Floats = np.exp(scores)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities


def _kept(logs: Floats, mask: Mask) -> NDArray[np.bool_]:
    """Return the tokens [S,V] that the mask keeps, from log-probabilities [S,M,V]."""
    kind, member, value = mask
    if not 0 <= member < logs.shape[1]:
        raise ValueError(f"the mask names member {member}, but there are {logs.shape[1]} members")
    own = logs[:, member]
    if kind == "top_k":
        if value != int(value) or value < 1:
            raise ValueError(f"k must be a whole number of at least 1, not {value}")
        return _ranks(own) < int(value)
    if kind not in ("plausibility", "nucleus"):
        raise ValueError(f"mask must be plausibility, nucleus or top_k, not {kind!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"{'alpha' if kind == 'plausibility' else 'p'} must lie in [0, 1], not {value}")
    if kind == "plausibility":
        limit = np.log(value) if value > 0 else -np.inf
        plausible: NDArray[np.bool_] = own >= own.max(axis=1, keepdims=True) + limit
        return plausible
    if value >= 1:  # rounding lets sums reach 1 early, which would cut a tail that nothing asked to cut
        return np.ones(own.shape, dtype=bool)
    falling = -np.sort(-np.exp(own), axis=1)
    before = np.cumsum(falling, axis=1) - falling
    before[:, 0] = 0
    largest = (before <= value).sum(axis=1, keepdims=True)
    nucleus: NDArray[np.bool_] = _ranks(own) < largest
    return nucleus


def _ranks(rows: Floats) -> NDArray[np.intp]:
    """The place [S,V] of each token by falling log-probability, from 0; the lowest id first among equals."""
    order = np.argsort(-rows, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(rows.shape[1]), rows.shape), axis=1)
    return ranks
