"""The reference of the start-up check: a plain forward pass of the untouched model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignment.errors import one_line
from fusion.core import NextTokens
from fusion.members.check import CheckFailedError, StartUpCheck
from fusion.members.engine import Engine

TOLERANCE = {torch.float32: 1e-3, torch.float16: 6e-2, torch.bfloat16: 0.25}
"""Largest mean difference of a position's log-probabilities, over their standard deviation.

Rounding grows with the logits. SmolLM2-135M has up to 0.016 in float16 and 0.09 in bfloat16 between the ways to
run it, and 0.4 and more after a wrong token.
"""
_LEAST_SPREAD = 1e-3  # nats, where all tokens are about as likely


class PlainPass:
    """Reference results for the texts of the start-up check, from the model as transformers runs it.

    Attributes:
        vocabulary_size: width of the model's distributions.
    """

    def __init__(self, model: Any, known_ids: int, room: int) -> None:
        """`room` tokens hold both texts; the model has its own attention, eager where it can be chosen."""
        self._check = StartUpCheck(known_ids, room)
        self._expected = [_log_probabilities(model, text) for text in self._check.texts]
        self._tolerance = TOLERANCE[model.dtype]
        self.vocabulary_size: int = self._expected[0].shape[1]

    def require_same(self, engine: Engine) -> None:
        """Raise CheckFailedError if the engine differs at any position, and torch.OutOfMemoryError."""
        try:
            worst = self._check.run(engine, self._difference)
        except (CheckFailedError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise CheckFailedError(f"a forward pass fails ({type(error).__name__}: {one_line(error)})") from error
        if not worst <= self._tolerance:
            raise CheckFailedError(f"it differs from a plain forward pass by {worst:.2g} standard deviations")

    def _difference(self, text: int, keep: int, append: Sequence[int], answer: NextTokens) -> float:
        rows = self._expected[text][keep : keep + len(append)]  # [n, V]
        spread = np.maximum(rows.std(dim=1, correction=0).numpy(), _LEAST_SPREAD)
        expected = np.asarray(rows.gather(1, torch.from_numpy(answer.ids).long()))
        difference = float((np.abs(expected - answer.logprobs).mean(axis=1) / spread).max())
        if answer.appended_logprobs is not None and len(append) > 1:
            given = rows[:-1].gather(1, torch.tensor(append[1:])[:, None])[:, 0].numpy()
            difference = max(difference, float((np.abs(given - answer.appended_logprobs) / spread[:-1]).max()))
        return difference if difference == difference else float("inf")


def _log_probabilities(model: Any, ids: list[int]) -> Tensor:
    """[len(ids), V] float32, of a plain forward pass with the model's own attention."""
    with torch.inference_mode():
        inputs = torch.tensor([ids], device=model.device)
        return torch.log_softmax(model(input_ids=inputs, use_cache=False).logits[0].float(), dim=-1).cpu()
