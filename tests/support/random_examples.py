"""What has to come of the examples that hypothesis draws."""

from __future__ import annotations

import hypothesis


def at_least(count: int) -> int:
    """So many where the examples are the same in every run; of examples that chance draws, a tenth."""
    return count if hypothesis.settings().derandomize else max(1, count // 10)
