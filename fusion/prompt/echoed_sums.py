"""Echo of a sum of log-probabilities: the pivot reads the prompt first, the others answer for its candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fusion.core import Token
from fusion.ensemble import View
from fusion.prompt.echo import Echo
from fusion.prompt.scoring import ScoredPrompt
from fusion.sequence.summing import Sum, Tokens, in_pivot, kept_by, named_logs
from fusion.terms import Terms


class EchoedSums:
    """The sums at the positions of one prompt, each over candidates of its own."""

    def __init__(self, echo: Echo, view: View, terms: Terms) -> None:
        self._echo, self._view, self._terms = echo, view, terms
        self._sums: list[Sum] = []
        self._asked: dict[str, list[Tokens]] = {}

    def candidates(self, pivot: ScoredPrompt) -> dict[str, NDArray[np.int32]]:
        """Find them in the pivot's answer; returns the ids [P, m] that each other member is to name.

        P are that member's scored positions. Rows that name less repeat an id.
        """
        view, mask = self._view, self._terms.mask
        ids, logprobs = pivot.best(self._echo.own[view.pivot])
        for row, is_apart in enumerate(self._echo.apart.tolist()):
            vocab_map = self._echo.map_of(view.pivot, is_apart)
            tokens, logs = in_pivot(ids[row], logprobs[row], vocab_map, view.vocabulary_size)
            if vocab_map is not None:
                logs = logs - np.log(np.exp(logs).sum())
            kept = np.ones(len(tokens), np.bool_)
            if mask is not None:
                kept = kept_by(mask, np.exp(logs), kept)
            found = Sum(view.pivot, tokens[kept], dict(self._terms.weights), None)
            found.logs[view.pivot] = logs[kept]
            self._sums.append(found)
        named: dict[str, NDArray[np.int32]] = {}
        for name, own in self._echo.own.items():
            if name != view.pivot:
                size = view.models[name].member.vocabulary_size
                maps = [self._echo.map_of(name, is_apart) for is_apart in self._echo.apart.tolist()]
                rows = [
                    one.tokens if other is None else other.sources_of(one.tokens)
                    for one, other in zip(self._sums, maps, strict=True)
                ]
                asked = [row[row < size] for row, at in zip(rows, own, strict=True) if at >= 0]
                self._asked[name] = asked
                width = max((len(row) for row in asked), default=0)
                positions = self._echo.positions[name]  # more than these, inside characters
                named[name] = np.zeros((len(positions), width), np.int32)
                for place, ids_there in zip(np.searchsorted(positions, own[own >= 0]), asked, strict=True):
                    named[name][place] = _padded(ids_there, width)
        return named

    def tokens(self, prompts: Mapping[str, ScoredPrompt], wanted: int) -> tuple[Token, ...]:
        """The prompt's tokens with their log-probabilities in the sums; see `Echo.tokens`."""
        view = self._view
        for name, asked in self._asked.items():
            at = np.flatnonzero(self._echo.own[name] >= 0)
            prompt = prompts.get(name)
            each = prompt.answer.each if prompt is not None else None
            if prompt is None or each is None:
                continue
            best = prompt.best(self._echo.own[name][at])
            places = np.searchsorted(self._echo.positions[name], self._echo.own[name][at])
            for row, (index, ids) in enumerate(zip(at, asked, strict=True)):
                one = self._sums[index]
                listed = best[0][row : row + 1], best[1][row : row + 1]
                logprobs = each[places[row], : len(ids)]
                other = self._echo.map_of(name, bool(self._echo.apart[index]))
                one.logs[name] = named_logs(one.tokens, ids, logprobs, other, listed)
        complete = [
            one if all(name in one.logs for name in one.weights) else replace(one, weights={view.pivot: 1.0})
            for one in self._sums
        ]
        return self._echo.described([(one.tokens, one.distribution()) for one in complete], wanted)


def _padded(ids: Tokens, width: int) -> Tokens:
    return np.pad(ids, (0, width - len(ids)), mode="edge") if len(ids) else np.zeros(width, np.int64)
