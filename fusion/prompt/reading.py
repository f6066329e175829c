"""The prefill of one sequence where more is wanted of it than the first distribution: weights, pivot, echo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fusion.core import Advance, NextTokens, Prompt, TextScores, Token
from fusion.ensemble import Ensemble, View
from fusion.options import FusionParams, SamplingParams
from fusion.prompt.echo import Echo
from fusion.prompt.echoed_sums import EchoedSums
from fusion.prompt.scoring import PrefixScores, PromptScoring, ScoredPrompt, prompt_advance
from fusion.prompt.weighing import Measured, measure
from fusion.teams import release_team
from fusion.terms import Terms

SHORT = 512  # texts and positions together whose evaluation takes no longer than a round


@dataclass(frozen=True, slots=True)
class Read:
    """The result of reading a prompt: measured weights, the scores behind them, and the prompt's own tokens."""

    measured: Measured | None
    echoed: tuple[Token, ...]
    scores: tuple[TextScores, ...]


class PromptReading:
    """A prompt that its members score while they read it.

    Attributes:
        pivot: that of `view`.

    Args:
        members: who reads it, in order.
        view: around the ensemble's pivot, or around who stands in for it while the prompt has not decided.
        terms: the sum that scores an echo; None for a mean.
        memory: the scores of earlier prompts.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        prompt: Prompt,
        fusion: FusionParams,
        sampling: SamplingParams,
        members: Sequence[str],
        view: View,
        terms: Terms | None,
        memory: PrefixScores,
    ) -> None:
        self._ensemble, self._prompt, self._fusion, self.pivot = ensemble, prompt, fusion, view.pivot
        self._wanted = sampling.prompt_logprobs or 0
        self._scoring: PromptScoring | None = None
        self._echo: Echo | None = None
        self._sums: EchoedSums | None = None
        self._positions = {name: np.empty(0, np.int64) for name in members}
        if len(members) > 1 and ensemble.scores(fusion):
            self._scoring = PromptScoring.of(prompt, members, fusion.weighting, memory, pivot=view.pivot)
            self._positions = dict(self._scoring.positions)
        if sampling.prompt_logprobs is not None:
            self._echo = Echo.of(prompt, members, view)
            if terms is not None:
                self._sums = EchoedSums(self._echo, view, terms)
            for name, positions in self._echo.positions.items():
                self._positions[name] = np.union1d(self._positions[name], positions)

    @property
    def is_long(self) -> bool:
        """Whether evaluating the answers can take so long that other sequences must not wait for it."""
        texts = 0 if self._scoring is None else self._scoring.texts
        return self._lists or texts + max(map(len, self._positions.values())) > SHORT

    @property
    def _lists(self) -> bool:
        """Whether members are asked for their best tokens at each position, not for the prompt's own alone."""
        return self._echo is not None or (self._scoring is not None and self._scoring.lists)

    def advances(self, sequence: int) -> dict[str, Advance]:
        """The prompt for every member, scored where it is to be."""
        return {
            name: prompt_advance(sequence, self._prompt.ids[name], positions, lists=self._lists)
            for name, positions in self._positions.items()
        }

    @property
    def pivot_first(self) -> bool:
        """Return whether the pivot reads first, and the others are asked about what it finds."""
        return self._sums is not None

    def about(self, pivot: NextTokens) -> dict[str, NDArray[np.int32]]:
        """The ids that the other members are to name at their positions, from the pivot's answer."""
        assert self._sums is not None
        return self._sums.candidates(self._scored(self.pivot, pivot))

    def _scored(self, name: str, answer: NextTokens) -> ScoredPrompt:
        lists = self._scoring is not None and self._scoring.lists
        doubles = self._ensemble.models[name].tokenizer.reverse.doubles if lists else {}
        ids = np.array(self._prompt.ids[name], dtype=np.int32)
        return ScoredPrompt(ids, self._positions[name], answer, doubles)

    def read(self, answers: Mapping[str, NextTokens], weights: Mapping[str, float]) -> Read:
        """Evaluate the answers of the members that are still there; `weights` are those given, by member."""
        prompts = {name: self._scored(name, answer) for name, answer in answers.items()}
        scores = () if self._scoring is None else tuple(self._scoring.collect(prompts))
        measured = None if self._scoring is None else self._measure(self._scoring, scores, prompts, weights)
        echoed: tuple[Token, ...] = ()
        if self._sums is not None:
            echoed = self._sums.tokens(prompts, self._wanted)
        elif self._echo is not None:
            in_force = weights if measured is None else measured.weights
            echoed = self._echo.tokens(prompts, in_force, self._fusion, self._wanted)
        release_team()
        return Read(measured, echoed, scores)

    def _measure(
        self,
        scoring: PromptScoring,
        texts: Sequence[TextScores],
        prompts: Mapping[str, ScoredPrompt],
        weights: Mapping[str, float],
    ) -> Measured:
        pivot = self.pivot if self.pivot in prompts else next(iter(prompts))  # where it was lost meanwhile
        measured = measure(texts, self._ensemble, list(prompts), self._fusion, weights, pivot, self._prompt)
        scored = {name: len(scoring.positions[name]) for name in prompts}
        kept = sum(int(text.tokens[measured.pivot].sum()) for text in scoring.kept)
        return replace(measured, report=replace(measured.report, scored=scored, kept=kept))
