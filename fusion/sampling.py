"""Drawing one token from a fused distribution. The distribution is given on candidates, not on all of V.

Order of operations, as users of vLLM expect: bias, forbidden tokens, penalties, temperature, min_p, top_k,
top_p. Members deliver log-probabilities, not logits, so `repetition_penalty` multiplies log-probabilities
(which makes a token less likely for every value over 1, whatever its sign would have been as a logit).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fusion.core import Floats, SamplingConstraint
from fusion.options import SamplingParams

BAN = -100.0
"""A bias of this or less is a ban, as OpenAI describes it: the token never comes out."""

Tokens = NDArray[np.int64]


def bias(tokens: Tokens, logprobs: Floats, logit_bias: Mapping[int, float]) -> tuple[Tokens, Floats]:
    """Add `logit_bias`; tokens that it bans are left out.

    A favoured token that is no candidate (members are asked for what they give to it) enters at the least
    candidate's log-probability. Where nothing else is left, the lowest id that is not banned does.
    """
    banned = {token for token, value in logit_bias.items() if value <= BAN}
    if banned:
        free = np.isin(tokens, list(banned), invert=True, kind="sort")
        tokens, logprobs = tokens[free], logprobs[free]
    if not len(tokens):
        lowest = next(token for token in range(len(banned) + 1) if token not in banned)
        tokens, logprobs = np.array([lowest], dtype=np.int64), np.zeros(1)
    present = set(tokens.tolist())
    missing = [token for token, value in logit_bias.items() if value > 0 and token not in present]
    if missing:
        tokens = np.concatenate([tokens, np.array(missing, dtype=np.int64)])
        logprobs = np.concatenate([logprobs, np.full(len(missing), logprobs.min())])
    shift = np.array([logit_bias.get(token, 0.0) for token in tokens.tolist()])
    return tokens, logprobs + shift


def penalise(
    tokens: Tokens,
    logprobs: Floats,
    params: SamplingParams,
    generated: Mapping[int, int],
    prompt: Collection[int],
) -> Floats:
    """Presence and frequency penalties on what was generated (OpenAI), repetition penalty on all that was seen.

    Args:
        generated: how often each pivot token was generated so far.
        prompt: the pivot's ids of the prompt.
    """
    ids = tokens.tolist()
    counts = np.array([generated.get(token, 0) for token in ids], dtype=np.float64)
    if params.repetition_penalty != 1.0:
        seen = np.array([token in generated or token in prompt for token in ids])
        # Above 0 (after a bias) a product would favour what it is to punish.
        penalty = np.where(logprobs > 0, 1 / params.repetition_penalty, params.repetition_penalty)
        logprobs = np.where(seen, logprobs * penalty, logprobs)
    return logprobs - params.frequency_penalty * counts - params.presence_penalty * (counts > 0)


def truncate(logprobs: Floats, params: SamplingParams) -> Floats:
    """Probabilities after min_p, top_k and top_p, unnormalised: 0 for what is cut. The best always stays."""
    p: Floats = np.exp(logprobs - logprobs.max())
    if params.min_p > 0:
        p[p < params.min_p] = 0.0
    if 0 < params.top_k < len(p):
        p[np.argsort(-p, kind="stable")[params.top_k :]] = 0.0
    if params.top_p < 1:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]  # mass of what is better than each
        p[order[before >= params.top_p * p.sum()]] = 0.0
    return p


def sample(
    tokens: Tokens,
    probabilities: Floats,
    params: SamplingParams,
    *,
    generated: Mapping[int, int],
    prompt: Collection[int],
    forbidden: Collection[int],
    rng: np.random.Generator,
) -> int:
    """Draw a pivot token.

    Args:
        tokens: [C] candidate ids.
        probabilities: [C] fused probabilities, need not sum to 1.
        forbidden: ids that must not be drawn (end tokens before `min_tokens`), unless nothing else is left.
        rng: the sequence's own generator; one number is drawn per token, so a seed reproduces the text.
    """
    possible = probabilities > 0
    tokens, logprobs = tokens[possible], np.log(probabilities[possible])
    if params.logit_bias:
        tokens, logprobs = bias(tokens, logprobs, params.logit_bias)
    if forbidden:
        allowed = np.isin(tokens, list(forbidden), invert=True, kind="sort")  # they are few
        if allowed.any():
            tokens, logprobs = tokens[allowed], logprobs[allowed]
    if params.repetition_penalty != 1.0 or params.frequency_penalty or params.presence_penalty:
        logprobs = penalise(tokens, logprobs, params, generated, prompt)
    if params.temperature == 0:
        return int(tokens[logprobs.argmax()])
    weights = np.cumsum(truncate(logprobs / params.temperature, params))
    # searchsorted on the right skips candidates of zero width
    return int(tokens[min(np.searchsorted(weights, rng.random() * weights[-1], side="right"), len(tokens) - 1)])


def draw(
    tokens: Tokens,
    probabilities: Floats,
    params: SamplingParams,
    constraint: SamplingConstraint | None,
    *,
    generated: Mapping[int, int],
    prompt: Collection[int],
    forbidden: frozenset[int],
    rng: np.random.Generator,
) -> int:
    """Draw a pivot token that a constraint admits. The rest is as in `sample`.

    Args:
        probabilities: [C], 0 for what the constraint does not admit.
    """
    if constraint is not None:
        if not probabilities.any():
            return constraint.fallback()
        if bias := params.logit_bias:
            forbidden |= {token for token in bias if not constraint.admits(token)}
            if all(bias.get(token, 0.0) <= BAN for token in tokens[probabilities > 0].tolist()):
                params = replace(params, logit_bias={})  # else the ban would break the grammar
    return sample(tokens, probabilities, params, generated=generated, prompt=prompt, forbidden=forbidden, rng=rng)


def is_plain(params: SamplingParams) -> bool:
    """Return whether nothing but a temperature shapes the distribution."""
    penalised = params.repetition_penalty != 1.0 or params.frequency_penalty or params.presence_penalty
    limited = params.min_p > 0 or params.top_k > 0 or params.top_p < 1
    return params.temperature > 0 and not (penalised or limited or params.logit_bias)


def sample_plain(
    tokens: Tokens,
    probabilities: Floats,
    temperatures: Floats,
    forbidden: Sequence[frozenset[int]],
    draws: Floats,
) -> list[int]:
    """Draw for S plain sequences at once what `sample` draws for each.

    Args:
        tokens: [S, C] candidate ids.
        probabilities: [S, C], 0 at the padding.
        temperatures: [S].
        forbidden: for each sequence, as in `sample`.
        draws: [S], the number that each sequence's own generator drew.
    """
    possible = probabilities
    for ids in set(forbidden) - {frozenset()}:
        concerned = np.array([theirs == ids for theirs in forbidden])[:, None]
        possible = np.where(concerned & np.isin(tokens, list(ids), kind="sort"), 0.0, possible)
    possible = np.where(possible.any(axis=1, keepdims=True), possible, probabilities)
    with np.errstate(divide="ignore"):
        logprobs = np.log(possible) / temperatures[:, None]
    weights = np.exp(logprobs - logprobs.max(axis=1, keepdims=True)).cumsum(axis=1)
    total = weights[:, -1:]
    # As `searchsorted` does, but never beyond the last candidate that has any width.
    columns = np.minimum((weights <= draws[:, None] * total).sum(axis=1), (weights < total).sum(axis=1))
    drawn: list[int] = tokens[np.arange(len(tokens)), columns].tolist()
    return drawn
