"""The path of models that keep a state: states cannot be rolled back, so they are saved, or computed again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from fusion.members.engine import DECODING_TOKENS
from fusion.members.transformers.forward.base import Forward, Part
from fusion.members.transformers.forward.padded import batches

CHECKPOINTS = 4
"""States kept per sequence: rolling back so many forward passes of it costs next to nothing."""

CHUNK = 512
"""Tokens of a missing text that are run again at a time."""


class Step(Protocol):
    """A forward pass that takes states in and gives them out.

    Attributes:
        kind: name of a path that uses it.
        together: whether single tokens of several sequences share a pass.
    """

    kind: str
    together: bool

    def __call__(self, parts: list[Part], states: list[Any]) -> tuple[list[Tensor], list[Any]]:
        """The logits [scored, V] float32 of each part, and its state after it.

        `states` are those before it, which stay as they are; empty where the parts open their sequences.
        """


@dataclass(slots=True)
class _Past:
    """The text of a sequence, run or not, and the states at some of its lengths.

    `opening` is the state after the last long piece, its prompt: whatever is rolled back of an answer, that stays.
    """

    text: list[int] = field(default_factory=list)
    checkpoints: list[tuple[int, Any]] = field(default_factory=list)
    opening: tuple[int, Any] | None = None

    @property
    def reached(self) -> int:
        """The length of the newest saved state to continue from; 0 without one."""
        return self.checkpoints[-1][0] if self.checkpoints else 0


class StatefulForward(Forward):
    """Forward passes over states; implements `forward.Forward`.

    A rollback goes back to the newest state that is not beyond it; what is missing is run again with the next
    part. The states that are kept bound the memory: CHECKPOINTS for each sequence, and that after its prompt.
    """

    def __init__(self, step: Step, *, continues: bool) -> None:
        """`continues`: whether the model can go on from a state with several tokens at once.

        Where it cannot, a prompt's first part is run in one piece, and what follows one token after the other.
        """
        self.path = step.kind if continues else f"{step.kind}, token by token"
        self._step = step
        self.continues = continues
        self._past: dict[int, _Past] = {}

    def run(self, parts: list[Part]) -> tuple[list[int], Tensor | None]:
        """As `Forward.run`."""
        logits: list[list[Tensor]] = [[] for _ in parts]
        pieces = [self._pieces(part) for part in parts]
        while any(pieces):
            turn = [i for i, left in enumerate(pieces) if left]
            now = [pieces[i].pop(0) for i in turn]
            for batch in batches(now, self._alone):
                together = [now[i] for i in batch]
                states = [self._past[one.sequence].checkpoints[-1][1] for one in together if one.first]
                found, states = self._step(together, states)
                for i, part, rows, state in zip(batch, together, found, states, strict=True):
                    logits[turn[i]].append(rows)
                    past = self._past[part.sequence]
                    past.checkpoints = [*past.checkpoints[1 - CHECKPOINTS :], (part.length, state)]
                    if len(part.ids) > DECODING_TOKENS:
                        past.opening = past.checkpoints[-1]
        scored = [rows for pieces_of_one in logits for rows in pieces_of_one if len(rows)]
        return list(range(len(parts))), torch.cat(scored) if scored else None

    def rollback(self, sequence: int, keep: int) -> None:
        """Drop text and states beyond `keep`."""
        past = self._past.get(sequence)
        if past is not None:
            del past.text[keep:]
            past.checkpoints = [one for one in past.checkpoints if one[0] <= keep]
            if past.opening is not None and past.opening[0] > keep:
                past.opening = None
            if not past.checkpoints and past.opening is not None:
                past.checkpoints = [past.opening]

    def forget(self, sequence: int) -> None:
        """Drop text and states."""
        self._past.pop(sequence, None)

    def _alone(self, part: Part) -> bool:
        """Return whether a part needs a forward pass of its own, because padding would enter its state."""
        return not self._step.together or len(part.ids) > 1 or part.first == 0

    def _pieces(self, part: Part) -> list[Part]:
        """Return the parts to run for a part, in order: the missing text before it, then itself."""
        past = self._past.setdefault(part.sequence, _Past())
        past.text[part.first :] = part.ids
        if self.continues:
            whole = _from(part, past.reached, past.text)
            return [whole] if len(whole.ids) <= len(part.ids) else list(_chunks(whole, max(CHUNK, len(part.ids))))
        # It opens, or went back beyond all checkpoints.
        if not past.reached or part.length - past.reached > DECODING_TOKENS:
            past.checkpoints = []
            return [_from(part, 0, past.text)]
        whole = _from(part, past.reached, past.text)
        return [
            replace(whole, ids=[token], first=whole.first + i, scored=[0] if i in whole.scored else [])
            for i, token in enumerate(whole.ids)
        ]


def _chunks(part: Part, size: int) -> Iterator[Part]:
    """The part in pieces of at most `size` tokens, in order."""
    for at in range(0, len(part.ids), size):
        scored = [index - at for index in part.scored if at <= index < at + size]
        yield replace(part, ids=part.ids[at : at + size], first=part.first + at, scored=scored)


def _from(part: Part, first: int, text: list[int]) -> Part:
    """The part with the text from `first` on before it."""
    again = part.first - first
    return replace(part, ids=text[first:], first=first, scored=[again + index for index in part.scored])
