"""Tokens as they are reported: with the text they add, their log-probability and the best alternatives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fusion.core import Floats, Token, TokenLogProb


def described(
    chosen: int, tokens: NDArray[np.int64], fused: Floats, wanted: int | None, surface: Callable[[int], bytes]
) -> Token:
    """A token and the `wanted` best of a fused distribution [C], before bias, penalties and temperature.

    A mixture's probabilities sum to less than 1 where members are truncated or maps lose mass (and to more where
    a learned map gains some); they are reported as they are up to 1, and normalised above.
    """
    excess = max(float(fused.sum()), 1.0) if wanted is not None else 1.0

    def entry(token: int, probability: float) -> TokenLogProb:
        logprob = float(np.log(probability / excess)) if probability > 0 else -np.inf
        return TokenLogProb(token, surface(token), logprob)

    where = np.flatnonzero(tokens == chosen)
    token = entry(chosen, float(fused[where[0]]) if len(where) else 0.0)
    if not wanted:
        return Token(token)
    best = np.argsort(-fused, kind="stable")[:wanted]
    return Token(token, tuple(entry(int(tokens[i]), float(fused[i])) for i in best if fused[i] > 0))
