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
    """A text that can be scored.

    Attributes:
        before: by member, the tokens before the boundaries [B] that all members share.
        digest: of every member's tokens up to its end, and of its place in them.
    """

    before: dict[str, Indices]
    digest: bytes


@dataclass(frozen=True, slots=True)
class _Part:
    """The part of a text that is scored: some of its units [U], none where its scores are `known`."""

    key: bytes
    before: dict[str, Indices]
    units: Indices
    known: TextScores | None

    def spans(self, name: str) -> tuple[Indices, Indices]:
        """A member's tokens before each unit and before the next, [U] both."""
        return self.before[name][self.units], self.before[name][self.units + 1]


class PromptScoring:
    """The scoring of a prompt, from the choice of positions to the members' answers.

    Texts that are not known already share `weighting.positions` (`shares`).

    Attributes:
        positions: by member, ascending indices of its prompt after which it is scored.
        kept: scores of texts that were known already.
        texts: how many there are.
    """

    def __init__(
        self,
        texts: Sequence[_Text],
        known: Sequence[TextScores | None],
        members: Sequence[str],
        weighting: Weighting,
        memory: PrefixScores,
        *,
        pivot: str,
    ) -> None:
        self.lists = weighting.method in DISTRIBUTIONAL
        self._memory = memory
        choice = _choice(weighting, pivot)
        widths = [np.diff(text.before[pivot]) for text in texts]
        sizes = [int(own.sum()) if scores is None else 0 for own, scores in zip(widths, known, strict=True)]
        quotas = shares(sizes, weighting.positions, weighting.spread)
        self._parts = [
            _Part(
                choice + text.digest,
                text.before,
                choose(own, quota, weighting.spread) if scores is None else _NONE,
                scores,
            )
            for text, own, quota, scores in zip(texts, widths, quotas, known, strict=True)
        ]
        self.texts = len(texts)
        self.kept = [part.known for part in self._parts if part.known is not None]
        self.positions = {name: self._positions(name) for name in members}

    @classmethod
    def of(
        cls, prompt: Prompt, members: Sequence[str], weighting: Weighting, memory: PrefixScores, *, pivot: str
    ) -> PromptScoring:
        """The scoring of a prompt; the answers to it share one as long as they know the same of it."""
        names, choice = tuple(members), _choice(weighting, pivot)
        texts = prompt.once((_texts, names, weighting.history), lambda: _texts(prompt, names, weighting.history))
        known = [memory.get(choice + text.digest) for text in texts]
        if known and known[-1] is not None and known[-1].empty:
            known[-1] = None  # it was scored nowhere before newer ones, and now it is what is asked
        return prompt.once(  # it holds what ids stand for here, so that nothing else has them
            (cls, names, weighting.history, choice, pivot, id(memory), *map(id, known)),
            lambda: cls(texts, known, names, weighting, memory, pivot=pivot),
        )

    def collect(self, prompts: Mapping[str, ScoredPrompt]) -> list[TextScores]:
        """The scores of all texts, of the members that answered their prompt."""
        scores, complete = [], len(prompts) == len(self.positions)
        nothing = self._read(_Part(b"", dict.fromkeys(prompts, _NONE), _NONE, None), prompts)
        for part in self._parts:
            read = part.known or (self._read(part, prompts) if len(part.units) else nothing)
            scores.append(read)
            if read is not part.known and complete and read.finite:
                self._memory.put(part.key, read)
        return scores

    def _positions(self, name: str) -> Indices:
        spans = [part.spans(name) for part in self._parts if len(part.units)]
        begin, end = (
            (np.concatenate([_NONE, *each]) for each in zip(*spans, strict=True)) if spans else (_NONE,) * 2
        )
        return np.sort(_between(begin, end))

    def _read(self, part: _Part, prompts: Mapping[str, ScoredPrompt]) -> TextScores:
        read = TextScores({}, {}, {}, {})
        for name, prompt in prompts.items():
            begin, end = part.spans(name)
            at, widths = _between(begin, end), end - begin
            read.nats[name] = _loss(prompt.given(at), widths)
            read.tokens[name] = widths
            read.first[name] = prompt.ids[begin + 1]
            if self.lists:
                read.best[name] = prompt.best(begin)
                read.text[name] = _loss(prompt.given_text(at), widths)
        return read


def _choice(weighting: Weighting, pivot: str) -> bytes:
    """What decides which units of a text are scored, and how."""
    lists = weighting.method in DISTRIBUTIONAL
    return f"{weighting.positions} {weighting.spread} {weighting.history} {lists} {pivot} ".encode()


def _between(begin: Indices, end: Indices) -> Indices:
    """All indices from each of `begin` to before its `end`."""
    widths = end - begin
    return np.repeat(end - np.cumsum(widths), widths) + np.arange(widths.sum())


def _loss(logprobs: Floats | LogProbs, widths: Indices) -> Floats:
    """The loss of each unit, [U], given the log-probabilities of its tokens and how many there are."""
    if not len(widths):
        return np.empty(0)
    loss: Floats = -np.add.reduceat(logprobs, np.cumsum(widths) - widths, dtype=np.float64)
    return loss


def _texts(prompt: Prompt, members: Sequence[str], history: Literal["all", "last"]) -> list[_Text]:
    """The texts of a prompt that have a unit."""
    if prompt.located is None:
        return []
    located = {name: prompt.located[name] for name in members}
    numbers = range(len(located[members[0]].texts))
    shared = [shared_boundaries(located, text) for text in (numbers if history == "all" else numbers[-1:])]
    shared = [before for before in shared if len(before[members[0]]) > 1]
    digests = [hashlib.blake2b(digest_size=16) for _ in shared]
    for name in members:
        prefixes = _prefixes(prompt.ids[name], [int(before[name][-1]) + 1 for before in shared])
        for digest, prefix, before in zip(digests, prefixes, shared, strict=True):
            digest.update(name.encode() + b"\0" + prefix + before[name].tobytes())
    return [_Text(before, digest.digest()) for before, digest in zip(shared, digests, strict=True)]


def _prefixes(ids: list[int], sizes: Sequence[int]) -> list[bytes]:
    """A digest of the first so many ids, for each of the sizes."""
    data, digest, done, found = np.array(ids, np.int32).tobytes(), hashlib.blake2b(digest_size=16), 0, {}
    for size in sorted(set(sizes)):
        digest.update(data[4 * done : 4 * size])
        found[size], done = digest.digest(), size
    return [found[size] for size in sizes]


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
