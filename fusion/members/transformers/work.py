"""Work: advances in progress."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fusion.core import Advance, Ids, LogProbs, Look, Looked, NextTokens

KEPT_ROWS = 16
"""The last so many rows of an answer are there for a `Look`: enough for a draft and the token before it."""
SHORTEST_SHARED = 32
"""Tokens of a beginning that is worth waiting for: a pass takes about as long for so many as for one."""


@dataclass(frozen=True, slots=True)
class KeptRows:
    """The last rows of an answer, for a second look: logits [n, V] float32 and their normalisers [n]."""

    logits: Tensor
    totals: LogProbs

    def look(self, look: Look) -> Looked:
        """The log-probabilities of the ids that are asked for."""
        ids = torch.as_tensor(list(look.ids), dtype=torch.long, device=self.logits.device)
        found: LogProbs = self.logits[look.row].index_select(0, ids).cpu().numpy() - self.totals[look.row]
        return Looked(look.sequence, found)


@dataclass(slots=True)
class Work:
    """An advance in progress: `done` of its tokens are cached; the rows of its answer are collected here.

    `append` and `scored` are the advance's. `after` names a sequence that reads the same beginning, and the tokens
    of that, which are copied once they are there.
    """

    advance: Advance
    append: list[int] = field(init=False)
    scored: Sequence[int] = field(init=False)
    after: tuple[int, int] | None = None
    done: int = 0
    ids: list[Ids] = field(default_factory=list)
    logprobs: list[LogProbs] = field(default_factory=list)
    appended: list[LogProbs] = field(default_factory=list)
    named: LogProbs | None = None
    rows: list[Tensor] = field(default_factory=list)
    totals: list[LogProbs] = field(default_factory=list)
    given: list[LogProbs] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.append, self.scored = list(self.advance.append), self.advance.scored

    @property
    def remaining(self) -> int:
        """Tokens that are not cached yet."""
        return len(self.append) - self.done

    def next(self, count: int) -> tuple[list[int], list[int]]:
        """The next `count` tokens, and which of them (by index) need logits."""
        end = self.done + count
        some = self.scored[bisect_left(self.scored, self.done) : bisect_left(self.scored, end)]
        scored = [index - self.done for index in some] + [count - 1] * (count == self.remaining)
        return self.append[self.done : end], scored

    def keep(self, logits: Tensor, totals: LogProbs) -> None:
        """Keep rows [n, V] and their normalisers [n] of a pass for a second look, the last ones of all."""
        # A copy: the rows of others are not to stay in memory for these.
        self.rows.append(logits[-KEPT_ROWS:].clone())
        self.totals.append(totals[-KEPT_ROWS:])
        while sum(map(len, self.totals[1:])) >= KEPT_ROWS:
            del self.rows[0], self.totals[0]

    def kept_rows(self) -> KeptRows | None:
        """The last rows, where they were to be kept."""
        if not self.rows:
            return None
        return KeptRows(torch.cat(self.rows)[-KEPT_ROWS:], np.concatenate(self.totals)[-KEPT_ROWS:])

    def answer(self, sequence: int) -> NextTokens:
        """Return the collected answer, once no tokens remain."""
        appended = None
        if self.advance.score != "last":
            appended = np.concatenate([*self.appended, np.empty(0, np.float32)])
        wanted = self.advance.each
        each = None if wanted is None else np.concatenate([*self.given, wanted[:0].astype(np.float32)])
        best = np.concatenate(self.ids), np.concatenate(self.logprobs)
        return NextTokens(sequence, *best, appended, self.named, each)


def shared_beginning(work: Work, mates: Mapping[int, list[int]]) -> tuple[int, int] | None:
    """The sequence among `mates` (their tokens, by sequence) that begins most like this one, and how far it does.

    None where that is less than `SHORTEST_SHARED`. At least one token is left, and all from the first scored one
    on.
    """
    most = min([len(work.append) - 1, *work.scored[:1]])
    best, found = SHORTEST_SHARED - 1, None
    for sequence, ids in mates.items():
        length = min(most, len(ids))
        if length > best and ids[:best] == work.append[:best]:
            same = np.asarray(ids[:length]) == np.asarray(work.append[:length])
            alike = length if same.all() else int(same.argmin())
            if alike > best:
                best, found = alike, (sequence, alike)
    return found
