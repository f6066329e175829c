"""Scoring a prompt in the prefill that decoding needs anyway: which positions, and what the members answer there.

A text (the content of a message) is scored in *units*: what stands between two neighbouring boundaries that all
members' tokenisations share. There every member spells the same characters, so its losses are of the same text
and can be compared, and at the first token of a unit all of them predict from the same point.

What the members make of a text depends on the prompt up to its end alone, so it is kept for the next turn of the
same conversation (`PrefixScores`).
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from alignment.text.boundaries import Indices, shared_boundaries
from fusion.core import Advance, Floats, Ids, LogProbs, NextTokens, Prompt, Score, TextScores
from fusion.options import DISTRIBUTIONAL, Weighting

KEPT_BYTES = 64 * 2**20
_NONE: Indices = np.empty(0, np.int64)


def prompt_advance(sequence: int, ids: list[int], positions: Indices, *, lists: bool) -> Advance:
    """A member's prompt, scored after `positions`; with `lists` for the best tokens, else for its own ones."""
    score: Score = "last" if not len(positions) else "all" if lists else "appended"
    return Advance(sequence, 0, ids, score, positions.tolist() if len(positions) else None)


class PrefixScores:
    """Scores of texts by all that stands before and in them; the longest unused go first. For any thread."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._limit = limit
        self._kept: OrderedDict[bytes, TextScores] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, key: bytes) -> TextScores | None:
        """Return what was kept, None if it no longer is."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: bytes, scores: TextScores) -> None:
        """Keep scores, within the limit of bytes."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = scores
                self._size += scores.size
            while self._size > self._limit:
                self._size -= self._kept.popitem(last=False)[1].size


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """A member's prompt `ids` [n] with its answer to them, which was scored after `positions` [P], ascending.

    `doubles` are, by id, the others that stand for the same bytes.
    """

    ids: Ids
    positions: Indices
    answer: NextTokens
    doubles: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def given(self, at: Indices) -> LogProbs:
        """The log-probabilities of the tokens after these positions, [len(at)]."""
        logprobs = self.answer.appended_logprobs
        return np.empty(0, np.float32) if logprobs is None else logprobs[np.searchsorted(self.positions, at)]

    def given_text(self, at: Indices) -> Floats:
        """As `given`, of the tokens' texts: those of their doubles that are among the best count as well."""
        found = self.given(at).astype(np.float64)
        for index, (row, id) in enumerate(zip(np.searchsorted(self.positions, at), self.ids[at + 1], strict=True)):
            if others := self.doubles.get(int(id)):
                hit = np.isin(self.answer.ids[row], others)
                found[index] = np.logaddexp.reduce([found[index], *self.answer.logprobs[row][hit]])
        return found

    def best(self, at: Indices) -> tuple[Ids, LogProbs]:
        """The k best tokens after these positions and the one that did come, ids and logprobs [len(at), k + 1].

        That one is known even if it is not among the best; if it is, it is not counted twice.
        """
        rows = np.searchsorted(self.positions, at)
        ids, logprobs = self.answer.ids[rows], self.answer.logprobs[rows]
        actual = self.ids[at + 1][:, None]
        beyond = np.where((ids == actual).any(axis=1), -np.inf, self.given(at)).astype(np.float32)
        return np.concatenate([ids, actual], axis=1), np.concatenate([logprobs, beyond[:, None]], axis=1)


@dataclass(frozen=True, slots=True)
class _Text:
    """A text to score: for each member the tokens before its shared boundaries [B], and which units are chosen.

    `known` are its scores where they were kept.
    """

    key: bytes
    before: dict[str, Indices]
    units: Indices
    known: TextScores | None


class PromptScoring:
    """The scoring of one sequence's prompt, from the choice of positions to the members' answers.

    Texts that are not known already share `weighting.positions` (`shares`).

    Attributes:
        positions: by member, ascending indices of its prompt after which it is scored.
        kept: scores of texts that were known already.
    """

    def __init__(
        self, prompt: Prompt, members: Sequence[str], weighting: Weighting, memory: PrefixScores, *, pivot: str
    ) -> None:
        self._ids = {name: np.array(prompt.ids[name], dtype=np.int32) for name in members}
        self._memory = memory
        self.lists = weighting.method in DISTRIBUTIONAL
        found = [(self._key(tokens, weighting), tokens) for tokens in _shared(prompt, members, weighting.history)]
        known = [memory.get(key) for key, _ in found]
        widths = [np.diff(tokens[pivot]) for _, tokens in found]
        sizes = [int(own.sum()) if scores is None else 0 for own, scores in zip(widths, known, strict=True)]
        quotas = shares(sizes, weighting.positions, weighting.spread)
        self._texts = [
            _Text(key, tokens, choose(own, quota, weighting.spread) if scores is None else _NONE, scores)
            for (key, tokens), own, quota, scores in zip(found, widths, quotas, known, strict=True)
        ]
        self.kept = [text.known for text in self._texts if text.known is not None]
        self.positions = {name: self._positions(name) for name in members}

    def collect(self, prompts: Mapping[str, ScoredPrompt]) -> list[TextScores]:
        """The scores of all texts, of the members that answered their prompt."""
        scores = []
        for text in self._texts:
            read = text.known or self._read(text, prompts)
            scores.append(read)
            if text.known is None and len(text.units) and len(prompts) == len(self.positions) and read.finite:
                self._memory.put(text.key, read)
        return scores

    def _positions(self, name: str) -> Indices:
        ranges = [
            np.arange(first, end)
            for text in self._texts
            for first, end in zip(text.before[name][text.units], text.before[name][text.units + 1], strict=True)
        ]
        return np.sort(np.concatenate([np.empty(0, np.int64), *ranges]))

    def _read(self, text: _Text, prompts: Mapping[str, ScoredPrompt]) -> TextScores:
        read = TextScores({}, {}, {}, {})
        for name, prompt in prompts.items():
            begin, end = text.before[name][text.units], text.before[name][text.units + 1]
            spans = [np.arange(*span) for span in zip(begin, end, strict=True)]
            read.nats[name] = _loss([prompt.given(span) for span in spans])
            read.tokens[name] = end - begin
            read.first[name] = prompt.ids[begin + 1]
            if self.lists:
                read.best[name] = prompt.best(begin)
                read.text[name] = _loss([prompt.given_text(span) for span in spans])
        return read

    def _key(self, before: Mapping[str, Indices], weighting: Weighting) -> bytes:
        """The key of a text's scores: every member's tokens up to its end, its place in them, what is chosen."""
        choice = f"{weighting.positions} {weighting.spread} {self.lists}"
        digest = hashlib.blake2b(choice.encode(), digest_size=16)
        for name, tokens in before.items():
            digest.update(name.encode() + b"\0")
            digest.update(self._ids[name][: tokens[-1] + 1].tobytes())
            digest.update(tokens.tobytes())
        return digest.digest()


def _loss(units: Sequence[Floats | LogProbs]) -> Floats:
    return -np.array([unit.sum(dtype=np.float64) for unit in units], dtype=np.float64)


def _shared(prompt: Prompt, members: Sequence[str], history: Literal["all", "last"]) -> list[dict[str, Indices]]:
    """By text and member, the tokens before the shared boundaries; only texts that have a unit."""
    if prompt.located is None:
        return []
    located = {name: prompt.located[name] for name in members}
    texts = range(len(located[members[0]].texts))
    before = [shared_boundaries(located, text) for text in (texts if history == "all" else texts[-1:])]
    return [tokens for tokens in before if len(tokens[members[0]]) > 1]


def shares(sizes: Sequence[int], limit: int, spread: Literal["evenly", "last"]) -> list[int]:
    """Return how many tokens of each text are scored, oldest first, at most `limit` together.

    What is asked is not to be crowded out by what stands before it: from the newest on each text gets half of what
    is left (all of it with `last`), and what shorter ones leave over goes to the newest again.
    """
    quotas, left = [0] * len(sizes), limit
    newest_first = [at for at in reversed(range(len(sizes))) if sizes[at]]
    for at in newest_first:
        is_oldest = at == newest_first[-1]
        quotas[at] = min(sizes[at], left if is_oldest or spread == "last" else -(-left // 2))
        left -= quotas[at]
    for at in newest_first:
        more = min(sizes[at] - quotas[at], left)
        quotas[at], left = quotas[at] + more, left - more
    return quotas


def choose(widths: Indices, limit: int, spread: Literal["evenly", "last"]) -> Indices:
    """Return the units [U] to score, given the pivot's tokens in each: at most `limit` together."""
    total = int(widths.sum())
    if total <= limit:
        return np.arange(len(widths))
    if spread == "last":
        return np.flatnonzero(np.cumsum(widths[::-1])[::-1] <= limit)
    count = max(len(widths) * limit // total, 1)
    while count:
        chosen = np.unique(np.linspace(0, len(widths) - 1, count + 2)[1:-1].round().astype(np.int64))
        if widths[chosen].sum() <= limit:
            return chosen
        count = count * 9 // 10
    return np.empty(0, np.int64)
