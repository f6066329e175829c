"""Policy: which members a sequence asks in a round, and for how many tokens.

A policy belongs to one sequence. Members that it does not ask keep what they have cached, and are given all that
was written meanwhile in one advance when they are asked again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from alignment.vocab_map import VocabMap
from fusion.core import Prompt, SamplingConstraint
from fusion.ensemble import Ensemble, View
from fusion.options import SamplingParams
from fusion.policy.pace import Costs, Followed
from fusion.sequence.ends import Ends
from fusion.sequence.seat import Seat
from fusion.terms import Terms


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a draft.

    Attributes:
        tokens: of the pivot: one that may be drawn, and those that a constraint forces after it.
        surface: the text that they add.
        constraint: as it stands after them; None without one.
    """

    tokens: tuple[int, ...]
    surface: bytes
    constraint: SamplingConstraint | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """Who votes in a round, and on how many tokens.

    Attributes:
        members: the names of those that are asked; None for all that take part.
        draft: what may come next. Members are asked for the distribution before, between and after its steps. One
            that leads alone may be asked again and again, for one step more.
    """

    members: Collection[str] | None = None
    draft: tuple[Step, ...] = ()


ALL = Ask()


class Asking(Protocol):
    """A sequence as its policy sees it; `fusion.sequence.sequence.Sequence` says what each part means."""

    prompt: Prompt
    sampling: SamplingParams
    view: View
    seats: dict[str, Seat]
    weights: dict[str, float]
    rng: np.random.Generator
    tokens: list[int]
    written: bytearray
    constraint: SamplingConstraint | None
    terms: Terms | None
    length: int
    spelled: bool
    generated: Counter[int]
    prompt_ids: frozenset[int]
    company: int
    costs: Costs
    followed: Followed
    ensemble: Ensemble
    asked: Ask
    ends: Ends

    @property
    def voters(self) -> tuple[str, ...]:
        """The members that vote in this round."""

    def map_of(self, name: str) -> VocabMap | None:
        """The member's map in this round."""

    def surface(self, token: int) -> bytes:
        """The text that a token of the pivot adds now."""


class Policy(Protocol):
    """Decides who is asked. Called on the fuser's thread, so it must not block.

    A policy that has no drafts, and asks once a round, takes both other methods from here.
    """

    def ask(self, sequence: Asking) -> Ask:
        """Return the members to ask for the next token, now that one was written."""

    def answered(self, sequence: Asking) -> Ask | None:
        """Whom to ask besides, now that all who vote have answered; None to fuse what there is."""
        return None

    def checked(self, drafted: int, accepted: int) -> None:
        """Of so many drafted tokens that members had scored, these were what was drawn."""
        return
