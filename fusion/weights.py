"""How much each member counts in the fused distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def member_weights(members: Sequence[str], given: Mapping[str, float] | None) -> NDArray[np.float64]:
    """Fixed weights [M] summing to 1 in the order of `members`, equal ones where none are given.

    Members that `given` does not name weigh nothing.
    """
    weights = np.array([1.0 if given is None else given.get(name, 0.0) for name in members], dtype=np.float64)
    weights /= weights.sum()
    return weights
