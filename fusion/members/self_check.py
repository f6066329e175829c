"""Before an engine serves: does its packed path compute what transformers computes?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from alignment.errors import ConfigError
from fusion.core import Advance, AdvanceFailed, NextTokens
from fusion.members.architecture import unsupported
from fusion.members.attention import UnsupportedAttentionError

if TYPE_CHECKING:
    from fusion.members.transformers_engine import TransformersEngine

TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest mean difference of a position's log-probabilities, in nats."""


def reference(model: Any, ids: list[int]) -> Tensor:
    """Log-probabilities [len(ids), V] float32 of a plain forward pass with the model's own attention."""
    with torch.inference_mode():
        inputs = torch.tensor([ids], device=model.device)
        return torch.log_softmax(model(input_ids=inputs, use_cache=False).logits[0].float(), dim=-1).cpu()


def samples(known_ids: int, room: int) -> tuple[list[int], list[int]]:
    """Two unequal lists of random ids that `room` tokens hold together."""
    draw = np.random.default_rng(0)
    long = max(2, min(24, room * 2 // 3))
    short = max(1, min(9, room // 3))
    return draw.integers(known_ids, size=long).tolist(), draw.integers(known_ids, size=short).tolist()


def check(
    engine: TransformersEngine, model: Any, long: list[int], short: list[int], expected: list[Tensor]
) -> None:
    """Run ragged rows, a prompt in two parts and rollbacks; raise ConfigError if any position differs.

    `expected` holds `reference` of `long` and of `short`, computed before the model's attention was replaced.
    """
    cut, last = len(long) // 2, len(short) - 1
    wrong = [(token + 1) % engine.known_ids for token in long[cut:]]
    try:
        worst = max(
            _compare(engine, {1: (long, 0, long[:cut]), 2: (short, 0, short)}, expected),
            _compare(engine, {1: (None, cut, wrong)}, expected),
            _compare(engine, {1: (long, cut - 1, long[cut - 1 :]), 2: (short, last, short[last:])}, expected),
        )
    except UnsupportedAttentionError as error:
        raise unsupported(model, f"its attention uses {error}") from error
    except ConfigError:
        raise
    except Exception as error:
        raise unsupported(model, f"a packed forward pass fails ({' '.join(str(error).split())[:200]})") from error
    finally:
        engine.close([1, 2])
    if not worst <= TOLERANCE[model.dtype]:
        raise unsupported(model, f"packed and plain forward passes differ by {worst:.2g} nats")


def _compare(
    engine: TransformersEngine,
    advances: dict[int, tuple[list[int] | None, int, list[int]]],
    expected: list[Tensor],
) -> float:
    """Advance (tokens expected to be cached or None, keep, append) per sequence; the largest mean difference."""
    engine.add([Advance(sequence, keep, append, "all") for sequence, (_, keep, append) in advances.items()])
    worst = 0.0
    while engine.has_work():
        for answer in engine.step():
            if isinstance(answer, AdvanceFailed):
                raise ConfigError(f"The start-up check failed: {answer.reason}")
            tokens, keep, append = advances[answer.sequence]
            if tokens is not None:
                rows = expected[answer.sequence - 1][keep : keep + len(append)]
                worst = max(worst, _difference(answer, rows, append))
    return worst


def _difference(answer: NextTokens, rows: Tensor, append: list[int]) -> float:
    """The largest mean difference between an answer's log-probabilities and the reference rows [n, V]."""
    told = np.asarray(rows.gather(1, torch.from_numpy(answer.ids).long()))
    difference = float(np.abs(told - answer.logprobs).mean(axis=1).max())
    if answer.appended_logprobs is not None and len(append) > 1:
        given = rows[:-1].gather(1, torch.tensor(append[1:])[:, None])[:, 0].numpy()
        difference = max(difference, float(np.abs(given - answer.appended_logprobs).max()))
    return difference if difference == difference else float("inf")
