"""Before an engine serves: does the path it chose compute what transformers computes?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from alignment.errors import one_line
from fusion.core import Advance, AdvanceFailed, NextTokens

if TYPE_CHECKING:
    from fusion.members.transformers.engine import TransformersEngine

TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest mean difference of a position's log-probabilities, in nats."""


class CheckFailedError(Exception):
    """A path does not compute what the model does; says how."""


class SelfCheck:
    """Two texts of random tokens and what the untouched model makes of them.

    Attributes:
        vocabulary_size: width of the model's distributions.
    """

    def __init__(self, model: Any, known_ids: int, room: int) -> None:
        """`room` tokens hold both texts; the model has its own attention, eager where it can be chosen."""
        draw = np.random.default_rng(0)
        long, short = max(2, min(24, room * 2 // 3)), max(1, min(9, room // 3))
        self._long: list[int] = draw.integers(known_ids, size=long).tolist()
        self._short: list[int] = draw.integers(known_ids, size=short).tolist()
        self._wrong = [(token + 1) % known_ids for token in self._long[long // 2 :]]
        self._expected = [_reference(model, self._long), _reference(model, self._short)]
        self._tolerance = TOLERANCE[model.dtype]
        self.vocabulary_size: int = self._expected[0].shape[1]

    def run(self, engine: TransformersEngine) -> None:
        """Run ragged rows, a prompt in two parts, rollbacks, and single tokens.

        Raises CheckFailedError if any position differs, and torch.OutOfMemoryError.
        """
        long, short = self._long, self._short
        cut, end, last = len(long) // 2, len(long) - 1, len(short) - 1
        try:
            worst = max(
                self._compare(engine, {1: (long, 0, long[:cut]), 2: (short, 0, short)}),
                self._compare(engine, {1: (long, cut, long[cut:])}),
                self._compare(engine, {1: (None, cut, self._wrong)}),
                self._compare(engine, {1: (long, cut - 1, long[cut - 1 :]), 2: (short, last, short[last:])}),
                self._compare(engine, {1: (long, end, long[end:]), 2: (short, last, short[last:])}),
            )
        except (CheckFailedError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise CheckFailedError(f"a forward pass fails ({_short(error)})") from error
        finally:
            engine.close([1, 2])
        if not worst <= self._tolerance:
            raise CheckFailedError(f"it differs from a plain forward pass by {worst:.2g} nats")

    def _compare(
        self, engine: TransformersEngine, advances: dict[int, tuple[list[int] | None, int, list[int]]]
    ) -> float:
        """Advance (expected tokens or None, keep, append) per sequence; the largest mean difference."""
        if engine.capacity.sequences < 2:
            advances = {1: advances[1]}
        engine.add([Advance(sequence, keep, append, "all") for sequence, (_, keep, append) in advances.items()])
        worst = 0.0
        while engine.has_work():
            for answer in engine.step():
                if isinstance(answer, AdvanceFailed):
                    raise CheckFailedError(answer.reason)
                assert isinstance(answer, NextTokens)
                tokens, keep, append = advances[answer.sequence]
                if tokens is not None:
                    rows = self._expected[answer.sequence - 1][keep : keep + len(append)]
                    worst = max(worst, _difference(answer, rows, append))
        return worst


def _reference(model: Any, ids: list[int]) -> Tensor:
    """Log-probabilities [len(ids), V] float32 of a plain forward pass with the model's own attention."""
    with torch.inference_mode():
        inputs = torch.tensor([ids], device=model.device)
        return torch.log_softmax(model(input_ids=inputs, use_cache=False).logits[0].float(), dim=-1).cpu()


def _difference(answer: NextTokens, rows: Tensor, append: list[int]) -> float:
    """The largest mean difference between an answer's log-probabilities and the reference rows [n, V]."""
    told = np.asarray(rows.gather(1, torch.from_numpy(answer.ids).long()))
    difference = float(np.abs(told - answer.logprobs).mean(axis=1).max())
    if answer.appended_logprobs is not None and len(append) > 1:
        given = rows[:-1].gather(1, torch.tensor(append[1:])[:, None])[:, 0].numpy()
        difference = max(difference, float(np.abs(given - answer.appended_logprobs).max()))
    return difference if difference == difference else float("inf")


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
