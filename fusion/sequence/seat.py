"""Seat: a member's place in one sequence, and how its tokens follow the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from alignment.spelling import Edit, Spelling
from fusion.core import NextTokens


class State(Enum):
    """The part that a member has in the current round."""

    VOTING = "voting"
    MUTE = "mute"  # it cannot spell the text, which ends inside a character
    READING = "reading"  # it came back, and reads what was written meanwhile
    IDLE = "idle"  # the policy does not ask it


@dataclass(slots=True)
class Seat:
    """A member's place in a sequence.

    Attributes:
        prompt: how many tokens of its cache are the prompt.
        spelling: its own tokens of the generated text; None for a member that is given the pivot's ids.
        reserved: tokens set aside in its cache.
        followed: how many tokens of the pivot it was given, or has spelled.
        heard: how many bytes of the generated text those are.
        latest: its newest answer; None while one is awaited.
        state: whether it votes in this round.
        rolled_back: tokens taken back before the current round.
    """

    prompt: int
    spelling: Spelling | None
    reserved: int
    followed: int = 0
    heard: int = 0
    latest: NextTokens | None = None
    state: State = State.VOTING
    rolled_back: int = 0

    @property
    def cached(self) -> int:
        """Tokens in the member's cache once everything submitted is done."""
        return self.prompt + (len(self.spelling.ids) if self.spelling else self.followed)

    @property
    def votes(self) -> bool:
        """True where its distribution counts in this round."""
        return self.state is State.VOTING

    def extend(self, tokens: Sequence[int], surface: bytes) -> Edit | None:
        """Take in tokens of the pivot and the text they add; the edit is relative to what is cached of the answer.

        None while the text ends inside a character that the member cannot spell.
        """
        followed = self.followed
        self.followed += len(tokens)
        self.heard += len(surface)
        if self.spelling is None:
            return Edit(followed, list(tokens))
        return self.spelling.extend(surface)

    def rest(self) -> None:
        """Sit out until asked again."""
        if self.state is State.VOTING:
            self.state = State.IDLE
