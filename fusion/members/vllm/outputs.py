"""Outputs of vLLM's engine core as answers.

Their rows begin with the sampled (or given) token, then come the k best.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusion.core import Advance, Generate, Generated, Ids, NextTokens

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreOutput


def generated(number: int, work: Generate, output: EngineCoreOutput, reused: int) -> Generated:
    """The tokens that vLLM's own loop has decoded."""
    ids = logprobs = None
    if work.sampling.logprobs is not None and output.new_logprobs is not None:
        width = 1 + work.sampling.logprobs  # in company of others that want more, vLLM returns more
        ids = _narrow(output.new_logprobs.logprob_token_ids[:, :width])
        logprobs = output.new_logprobs.logprobs[:, :width]
    return Generated(number, output.new_token_ids, ids, logprobs, output.finish_reason is not None, reused)


def next_tokens(
    number: int, advance: Advance, output: EngineCoreOutput, candidates: int, reused: int
) -> NextTokens | None:
    """The answer to an advance, with the `candidates` best; None where it holds what is not a number."""
    assert output.new_logprobs is not None
    best = slice(1, 1 + candidates)
    ids, logprobs = output.new_logprobs.logprob_token_ids[:1, best], output.new_logprobs.logprobs[:1, best]
    appended = named = each = None
    if advance.also:
        named = output.new_logprobs.logprobs[:1, best.stop : best.stop + len(advance.also)]
    if advance.score != "last":
        appended = np.empty(0, np.float32)
    if advance.scored:
        # V1 returns a row for every token of the prompt, V2 one for every token that it computed; both end
        # with the one after the last token but one. Rows of our own are those that were asked for.
        rows = output.new_prompt_logprobs_tensors
        last = len(rows.logprobs) - (len(advance.append) - 1)
        wanted = np.arange(len(advance.scored)) if has_rows(advance) else np.asarray(advance.scored) + last
        scored = rows.logprobs.numpy()[wanted]
        appended = scored[:, 0]
        if advance.each is not None:
            each = scored[:, scored.shape[1] - advance.each.shape[1] :]
        if advance.score == "all":
            ids = np.concatenate([rows.logprob_token_ids.numpy()[wanted][:, best], ids])
            logprobs = np.concatenate([scored[:, best], logprobs])
    if np.isnan(logprobs).any() or (appended is not None and np.isnan(appended).any()):
        return None
    return NextTokens(number, _narrow(ids), logprobs, appended, named, each, reused)


def has_rows(advance: Advance) -> bool:
    """Return whether its scored rows have bitmasks or named ids of their own."""
    limited = advance.allowed is not None and advance.allowed.ndim > 1
    return bool(advance.scored) and (limited or advance.each is not None)


def _narrow(ids: NDArray[np.integer[Any]]) -> Ids:
    """Token ids as int32: the V2 runner's have 64 bits."""
    return ids.astype(np.int32, copy=False)
