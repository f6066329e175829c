"""Echo: teacher-forced log-probabilities of a prompt's own tokens under the fusion.

Each token of the pivot is predicted by the pivot and by the members that have a boundary before it as well; the
others abstain there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from alignment.text.boundaries import Indices
from fusion.core import Prompt, Token, TokenLogProb
from fusion.ensemble import View
from fusion.options import FusionParams
from fusion.prompt.scoring import ScoredPrompt
from fusion.step import fuse, project

BLOCK = 128  # positions fused at a time, which bounds the memory that takes


class Echo:
    """The positions at which members vote on the pivot's tokens, `positions` [P] of each member's own prompt."""

    def __init__(self, prompt: Prompt, members: Sequence[str], view: View) -> None:
        self._view = view
        self._ids = prompt.ids[view.pivot]
        # By member, the position in its prompt for each of the pivot's, -1 where it has none.
        self._own = {name: self._counterparts(prompt, name) for name in members}
        self.positions = {name: own[own >= 0] for name, own in self._own.items()}

    def _counterparts(self, prompt: Prompt, name: str) -> Indices:
        last = len(self._ids) - 1
        if prompt.ids[name] == self._ids:
            return np.arange(last)
        own = np.full(last, -1, dtype=np.int64)
        if prompt.located is not None:
            pivot, member = prompt.located[self._view.pivot], prompt.located[name]
            for text in range(len(pivot.texts)):
                (places, at), (own_places, own_at) = pivot.boundaries(text), member.boundaries(text)
                _, here, there = np.intersect1d(places, own_places, return_indices=True)
                inside = (at[here] < last) & (own_at[there] < len(prompt.ids[name]) - 1)
                own[at[here][inside]] = own_at[there][inside]
        return own

    def tokens(
        self, prompts: Mapping[str, ScoredPrompt], weights: Mapping[str, float], fusion: FusionParams, wanted: int
    ) -> tuple[Token, ...]:
        """The pivot's tokens with their fused log-probability and the `wanted` best of each distribution.

        Nothing predicts the first: its log-probability is NaN.
        """
        found: list[Token | None] = [None] * len(self._ids)
        if self._ids:
            found[0] = Token(self._entry(self._ids[0], np.nan))
        names = list(prompts)
        votes = np.stack([self._own[name] >= 0 for name in names], axis=1)
        for pattern in np.unique(votes, axis=0) if len(votes) else ():
            voters = [name for name, voting in zip(names, pattern, strict=True) if voting]
            at = np.flatnonzero((votes == pattern).all(axis=1))
            for block in np.array_split(at, -(-len(at) // BLOCK)):
                scored = {name: prompts[name] for name in voters}
                for index, token in zip(block, self._fused(block, scored, weights, fusion, wanted), strict=True):
                    found[index + 1] = token
        return tuple(token for token in found if token is not None)

    def _fused(
        self,
        at: Indices,
        prompts: Mapping[str, ScoredPrompt],
        weights: Mapping[str, float],
        fusion: FusionParams,
        wanted: int,
    ) -> list[Token]:
        """The tokens after these positions of the pivot, on which the same members vote."""
        view = self._view
        answers = [prompt.best(self._own[name][at]) for name, prompt in prompts.items()]
        maps = [view.maps[name].rest for name in prompts]
        candidates = project(answers, maps, view.vocabulary_size)
        given = np.tile([weights[name] for name in prompts], (len(at), 1))
        pivot = list(prompts).index(view.pivot)
        fused = fuse(candidates.probabilities, given, pivot, fusion).distribution
        fused = fused / np.maximum(fused.sum(axis=1, keepdims=True), 1.0)
        return [
            self._token(self._ids[index + 1], row, probabilities, wanted)
            for index, row, probabilities in zip(at, candidates.tokens, fused, strict=True)
        ]

    def _token(
        self, label: int, tokens: NDArray[np.int64], probabilities: NDArray[np.float64], wanted: int
    ) -> Token:
        with np.errstate(divide="ignore"):
            logprobs = np.log(probabilities)
        where = np.flatnonzero(tokens == label)
        chosen = float(logprobs[where[0]]) if len(where) else -np.inf
        best = np.argsort(-probabilities, kind="stable")[:wanted]
        top = tuple(self._entry(int(tokens[i]), float(logprobs[i])) for i in best if probabilities[i] > 0)
        return Token(self._entry(label, chosen), top)

    def _entry(self, token: int, logprob: float) -> TokenLogProb:
        return TokenLogProb(token, self._view.surface(token), logprob)
