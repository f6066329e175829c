"""Advances that name ids and limit them, and what any engine must answer to them."""

from __future__ import annotations

import random

import numpy as np

from fusion.core import Advance
from fusion.members.engine import Engine
from tests.support.random_models import VOCABULARY, Model, plain_logprobs, run

EXACT = 1e-4


def bits(ids) -> np.ndarray:
    """A bitmask in which these ids are set."""
    mask = np.zeros(VOCABULARY, np.bool_)
    mask[list(ids)] = True
    return np.packbits(mask, bitorder="little")


def require_named_ids(model: Model, engine: Engine, k: int) -> None:
    """Named, limited, plain and scored advances share steps; every answer is that of a plain pass."""
    rng = random.Random(0)
    texts = {number: [rng.randrange(VOCABULARY) for _ in range(9)] for number in range(4)}
    allowed = [3, 5, 50] if k > 3 else rng.sample(range(VOCABULARY), 10)
    wanted = {
        0: {"also": [7, 0, VOCABULARY - 1]},
        1: {"allowed": bits(allowed), "also": [9]},
        2: {},
        3: {"allowed": bits(range(0, VOCABULARY, 2)), "score": "all"},
    }
    kept = dict.fromkeys(texts, 0)
    for cut in (4, 5, 8, 9):  # the prompt, and extensions
        answers = run(
            engine, *(Advance(n, kept[n], text[kept[n] : cut], **wanted[n]) for n, text in texts.items())
        )
        for number, text in texts.items():
            expected = plain_logprobs(model, text[:cut])[-1].numpy()
            answer = answers[number]
            also = wanted[number].get("also")
            if also:
                assert answer.named.shape == (1, len(also))
                assert np.abs(answer.named[0] - expected[also]).max() < EXACT
            else:
                assert answer.named is None
            masked = expected.copy()
            if (mask := wanted[number].get("allowed")) is not None:
                masked[~np.unpackbits(mask, bitorder="little", count=VOCABULARY).view(np.bool_)] = -np.inf
            best = np.sort(masked)[::-1][:k]
            assert answer.logprobs.shape[1] == k
            finite = np.isfinite(best)
            assert np.abs(answer.logprobs[-1][finite] - best[finite]).max() < EXACT
            assert np.isneginf(answer.logprobs[-1][~finite]).all()
            assert np.abs(masked[answer.ids[-1][finite]] - best[finite]).max() < EXACT
            kept[number] = cut
    engine.close(list(texts))
