"""Seat: a member's place in one sequence, and how its tokens follow the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from alignment.spelling import Edit, Mark, Spelling
from fusion.core import Ids, LogProbs, NextTokens


class State(Enum):
    """The part that a member has in the current round."""

    VOTING = "voting"
    MUTE = "mute"  # it cannot spell the text, which ends inside a character
    READING = "reading"  # it came back, and reads what was written meanwhile
    IDLE = "idle"  # the policy does not ask it


@dataclass(slots=True)
class Point:
    """A boundary of a draft, as a seat stands there.

    Attributes:
        followed, heard, mark: what its seat goes back to.
        rolled_back: tokens taken back to get there.
        answer: the answer whose last row is the distribution there; None for a row of the seat's `latest`.
    """

    followed: int
    heard: int
    mark: Mark | None
    rolled_back: int = 0
    answer: NextTokens | None = None


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
        points: the boundaries of the draft that it was given, the first one before it; empty without a draft.
    """

    prompt: int
    spelling: Spelling | None
    reserved: int
    followed: int = 0
    heard: int = 0
    latest: NextTokens | None = None
    state: State = State.VOTING
    rolled_back: int = 0
    points: list[Point] = field(default_factory=list)

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

    def point(self, rolled_back: int = 0) -> None:
        """Note a boundary of the draft."""
        mark = None if self.spelling is None else self.spelling.mark()
        self.points.append(Point(self.followed, self.heard, mark, rolled_back))

    def back_to(self, point: Point) -> None:
        """Take back what it was given since."""
        self.followed, self.heard = point.followed, point.heard
        if self.spelling is not None and point.mark is not None:
            self.spelling.restore(point.mark)

    def row(self, at: int) -> tuple[Ids, LogProbs]:
        """The distribution at boundary `at` of the draft: ids and log-probabilities, [1, k] both."""
        answer, row = self.latest, at
        if self.points and self.points[at].answer is not None:
            answer, row = self.points[at].answer, -1
        assert answer is not None, "a round is of seats that have answered"
        row = min(row, len(answer.ids) - 1) % len(answer.ids)
        return answer.ids[row : row + 1], answer.logprobs[row : row + 1]

    def end_draft(self, at: int, number: int) -> None:
        """Keep the draft up to boundary `at`, and what was answered there."""
        if self.points:
            self.latest = NextTokens(number, *self.row(at))
            self.back_to(self.points[at])
            self.points = []
