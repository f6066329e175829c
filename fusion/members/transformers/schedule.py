"""Schedule: the tokens that share the next forward pass."""

from __future__ import annotations

from collections.abc import Sequence

from fusion.members.engine import DECODING_TOKENS


def share(remaining: Sequence[int], chunk: int) -> list[int]:
    """Tokens to run now for each queued advance, given how many it has left, the longest waiting first.

    Advances with few tokens left (decoding, rollback, drafts) always run whole. The longer ones are prompts
    and get `chunk` tokens together, so sequences that decode wait for no more than that: half of it is the longest
    waiting prompt's, so that it cannot starve; the rest goes to those nearest to their end, so that short
    prompts overtake long ones.
    """
    short = min(DECODING_TOKENS, chunk)
    now = [left if left <= short else 0 for left in remaining]
    prompts = [i for i, left in enumerate(remaining) if left > short]
    if not prompts:
        return now
    oldest, budget = prompts[0], chunk
    now[oldest] = min(remaining[oldest], -(-chunk // 2))
    budget -= now[oldest]
    for i in sorted(prompts[1:], key=lambda i: remaining[i]):
        now[i] = min(remaining[i], budget)
        budget -= now[i]
    now[oldest] += min(remaining[oldest] - now[oldest], budget)
    return now
