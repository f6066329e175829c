"""Sampling options of a request to vLLM's own loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion.core import Generate
from fusion.sampling import BAN

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

BARRED = -1e9  # added to a logit, leaves nothing
LARGEST_SEED = 2**63 - 1
SAME = (
    *("max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "logprobs"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
)
"""Options that have the same name and meaning in vLLM."""


def generation(work: Generate, vocabulary_size: int) -> SamplingParams:
    """vLLM's sampling parameters. Ids beyond the vocabulary cannot be drawn and would end its step."""
    from vllm.sampling_params import SamplingParams

    wanted = work.sampling
    bias = {token: value for token, value in wanted.logit_bias.items() if token < vocabulary_size}
    bias |= {token: BARRED for token, value in bias.items() if value <= BAN}
    bias |= {token: BARRED for token in work.barred if token < vocabulary_size}
    return SamplingParams(
        **{name: getattr(wanted, name) for name in SAME},
        seed=None if wanted.seed is None else wanted.seed & LARGEST_SEED,
        stop_token_ids=[token for token in work.stops if token < vocabulary_size],
        logit_bias=bias or None,
        detokenize=False,
    )
