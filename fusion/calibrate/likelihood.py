"""Likelihood: the mean fused log-likelihood of reference answers by the members' weights, with its gradient.

Q questions, M members, N positions of all questions together, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fusion.calibrate.references import Scored
from fusion.core import Floats

LEAST = 1e-20  # the probability of a text that no member gives any


class Likelihood(Protocol):
    """A combination with the rows that it is tried on."""

    def __call__(self, weights: Floats) -> tuple[Floats, Floats]:
        """By question, the mean log-likelihood in nats [Q], and its derivatives [Q, M], at weights [Q, M]."""


class Mixture:
    """The mixture's: log of the weighted mean of what the members give to the right text.

    Args:
        given: by question, these probabilities, [U, M].
    """

    def __init__(self, given: Sequence[Floats]) -> None:
        self._counts = np.array([len(one) for one in given])
        self._of = np.repeat(np.arange(len(given)), self._counts)
        self._given = np.maximum(np.concatenate(given), LEAST)

    def __call__(self, weights: Floats) -> tuple[Floats, Floats]:
        """See `Likelihood`."""
        fused = (self._given * weights[self._of]).sum(axis=1)
        slopes = self._given / fused[:, None]
        return _means(np.log(fused), self._counts), _means(slopes, self._counts)


class Product:
    """The product's: the weighted mean of log-probabilities, normalised over the candidates.

    Args:
        logs: by question, the members' log-probabilities, [P, C, M].
        labels: by question, which candidate is right, [P].
    """

    def __init__(self, logs: Sequence[NDArray[np.float32]], labels: Sequence[NDArray[np.int64]]) -> None:
        self._counts = np.array([len(one) for one in logs])
        self._of = np.repeat(np.arange(len(logs)), self._counts)
        self._logs, self._labels = np.concatenate(logs), np.concatenate(labels)

    def __call__(self, weights: Floats) -> tuple[Floats, Floats]:
        """See `Likelihood`."""
        rows = np.arange(len(self._labels))
        scores = np.einsum("pcm,pm->pc", self._logs, weights[self._of])
        best = scores.max(axis=1, keepdims=True)
        shares = np.exp(scores - best)
        total = shares.sum(axis=1, keepdims=True)
        right = scores[rows, self._labels] - best[:, 0] - np.log(total[:, 0])
        slopes = self._logs[rows, self._labels] - np.einsum("pcm,pc->pm", self._logs, shares / total)
        return _means(right, self._counts), _means(slopes, self._counts)


def by_text(scored: Sequence[Scored]) -> Mixture:
    """The mixture over whole stretches of text, whoever is the pivot."""
    return Mixture([one.units for one in scored])


def by_token(scored: Sequence[Scored]) -> tuple[Mixture, Product]:
    """Mixture and product over the pivot's tokens, through the maps, on the same positions: to be compared."""
    rows = [one.rows for one in scored]
    product = Product([one.logs for one in rows], [one.labels for one in rows])
    return Mixture([one.given for one in rows]), product


def _means(values: Floats, counts: NDArray[np.int64]) -> Floats:
    """The means by question of values [N] or [N, M]."""
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    sums = np.add.reduceat(values, starts, axis=0)
    means: Floats = sums / (counts if values.ndim == 1 else counts[:, None])
    return means
