"""Seat: a member's place in one sequence, and how its tokens follow the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from alignment.spelling import Edit, Mark, Spelling
from alignment.text.characters import Beginnings, beginning_at_the_end
from fusion.core import Ids, LogProbs, NextTokens
from fusion.inside import Level, is_worth_asking, likelihood

State = Literal["voting", "mute", "reading", "idle"]
"""The part that a member has in the current round.

`mute`: it says nothing of the character that the text ends inside of. `reading`: it came back, and reads what was
written meanwhile. `idle`: the policy does not ask it.
"""


@dataclass(slots=True)
class Point:
    """A boundary of a draft, as a seat stands there.

    Attributes:
        followed, heard, mark: what its seat goes back to.
        intact: tokens of the answer that its engine's cache still holds as they are here.
        rolled_back: tokens taken back to get there.
        answer: the answer whose last row is the distribution there; None for a row of the seat's `latest`.
    """

    followed: int
    heard: int
    mark: Mark | None
    intact: int
    rolled_back: int = 0
    answer: NextTokens | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer of a member at or after the beginning of a character that the text ends inside of.

    Attributes:
        tokens: how many tokens it had of the generated text,
        spelled: and how many bytes of the character.
        ids, logprobs: [k], its best tokens there.
        path: natural log of the probability of its tokens since the character's beginning.
    """

    tokens: int
    spelled: int
    ids: Ids
    logprobs: LogProbs
    path: float


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
        rolled_back: tokens taken back by the newest work.
        points: the boundaries of the draft that it was given, the first one before it; empty without a draft.
        held: the bytes of an unfinished character at the end of the text that it has not been given.
        asked: its answers at or after that character's beginning, but the newest.
        path: natural log of the probability of its tokens since then.
        inside: inside a character, its distribution over the pivot's next token, ids and log-probabilities [1, n].
        standing: the row of its engine's last answer that `latest` ends with, from the end.
        intact: tokens of the answer that its engine's cache holds as they are, where a draft that was taken back
            has changed those after them; None for all.
    """

    prompt: int
    spelling: Spelling | None
    reserved: int
    followed: int = 0
    heard: int = 0
    latest: NextTokens | None = None
    state: State = "voting"
    rolled_back: int = 0
    points: list[Point] = field(default_factory=list)
    held: bytes = b""
    asked: list[Asked] = field(default_factory=list)
    path: float = 0.0
    inside: tuple[Ids, LogProbs] | None = None
    standing: int = -1
    intact: int | None = None

    @property
    def cached(self) -> int:
        """Tokens in the member's cache once everything submitted is done."""
        return self.prompt + (len(self.spelling.ids) if self.spelling else self.followed)

    @property
    def votes(self) -> bool:
        """True where its distribution counts in this round."""
        return self.state == "voting"

    @property
    def is_inside(self) -> bool:
        """Whether the text ends inside a character, and this member is not given the pivot's ids."""
        return bool(self.held or self.asked)

    def extend(self, tokens: Sequence[int], surface: bytes) -> Edit:
        """Take in tokens of the pivot and the text they add; the edit is relative to what is cached of the answer.

        The beginning of a character at the end is held back: see `spell_beginning`.
        """
        followed = self.followed
        self.followed += len(tokens)
        self.heard += len(surface)
        if self.spelling is None:
            return Edit(followed, list(tokens))
        self.inside = None
        data = self.held + surface
        text = self.spelling.pending + data
        beginning = beginning_at_the_end(text)
        if beginning == text:
            self.held = data
            return Edit(len(self.spelling.ids), [])
        self.held, self.asked, self.path = beginning, [], 0.0
        edit = self.spelling.extend(data[: len(data) - len(beginning)] if beginning else data)
        assert edit is not None, "whole characters can be spelled"
        return edit

    def spell_beginning(
        self, beginnings: Beginnings, surfaces: Sequence[bytes | None], also: Sequence[int]
    ) -> Edit | None:
        """Spell the beginning of a character where that is worth asking for; else None, and nothing has changed.

        It is where the tokens of the beginning also begin the spelling of a whole character, and the member does
        not all but exclude them.

        Args:
            surfaces: the member's, by id.
            also: the ids that it named in its newest answer.
        """
        spelling = self.spelling
        if spelling is None or not self.held or spelling.lead:
            return None
        ids, logprobs = self.listed(0, also)
        newest = Asked(len(spelling.ids), len(spelling.pending), ids[0], logprobs[0], self._path())
        mark = spelling.mark()
        edit = spelling.extend(self.held)
        if edit is not None and edit.append:
            asked = [one for one in (*self.asked, newest) if one.tokens <= edit.keep]
            if asked:
                tokens, base = spelling.ids[asked[-1].tokens :], asked[-1]
                level = Level(base.ids, base.logprobs, spelling.pending[base.spelled :], base.path)
                canonical = beginnings.are_canonical(spelling.ids[asked[0].tokens :], spelling.pending)
                # Bytes that turn out to begin no character leave nothing that a token could complete.
                if level.rest and canonical and is_worth_asking(level, tokens[0], surfaces):
                    self.held, self.asked = b"", asked
                    self.path = base.path + likelihood(level, tokens[0])
                    return Edit(base.tokens, tokens)
        spelling.restore(mark)
        return None

    def levels(self, also: Sequence[int]) -> list[Level]:
        """Its answers that say something of the character that the text ends inside of."""
        assert self.spelling is not None
        ids, logprobs = self.listed(0, also)
        beginning = self.spelling.pending + self.held
        levels = [Level(one.ids, one.logprobs, beginning[one.spelled :], one.path) for one in self.asked]
        return [*levels, Level(ids[0], logprobs[0], self.spelling.lead + self.held, self._path())]

    def _path(self) -> float:
        """As `path`, with the tokens that the newest answer scored."""
        scored = None if self.latest is None else self.latest.appended_logprobs
        return self.path + (0.0 if scored is None else float(scored.sum(dtype=np.float64)))

    def rest(self) -> None:
        """Sit out until asked again."""
        if self.state == "voting":
            self.state = "idle"

    def point(self, rolled_back: int = 0) -> None:
        """Note a boundary of the draft."""
        mark = None if self.spelling is None else self.spelling.mark()
        intact = self.cached - self.prompt if self.intact is None else self.intact
        self.points.append(Point(self.followed, self.heard, mark, intact, rolled_back))

    def rolled_back_at(self, at: int) -> int:
        """Tokens taken back to get to boundary `at` of the draft, or before the round where there is none."""
        return self.points[at].rolled_back if self.points else self.rolled_back

    def back_to(self, point: Point) -> None:
        """Take back what it was given since."""
        self.followed, self.heard = point.followed, point.heard
        if self.spelling is not None and point.mark is not None:
            self.spelling.restore(point.mark)
            self.intact = point.intact if point.intact < len(self.spelling.ids) else None

    def given(self, edit: Edit) -> Edit:
        """An edit as the engine is given it: with the tokens before it that it does not hold. It has them then."""
        intact, self.intact = self.intact, None
        for point in self.points:
            point.intact = min(point.intact, edit.keep)
        if self.spelling is None or intact is None or intact >= edit.keep:
            return edit
        return Edit(intact, self.spelling.ids[intact:])

    def answer(self, at: int) -> NextTokens:
        """The answer at boundary `at` of the draft: one row, [1, k]."""
        answer, row = self.latest, at
        if self.points and self.points[at].answer is not None:
            answer, row = self.points[at].answer, -1
        assert answer is not None, "a round is of seats that have answered"
        last = len(answer.ids) - 1
        if not last:
            return answer
        row = min(row, last) % (last + 1)
        named = answer.named if row == last or answer.each is None else answer.each[row : row + 1]
        return NextTokens(answer.sequence, answer.ids[row : row + 1], answer.logprobs[row : row + 1], named=named)

    def row(self, at: int) -> tuple[Ids, LogProbs]:
        """The distribution at boundary `at` of the draft: ids and log-probabilities, [1, k] both."""
        answer = self.answer(at)
        return answer.ids, answer.logprobs

    def listed(self, at: int, also: Sequence[int]) -> tuple[Ids, LogProbs]:
        """As `row`, with the ids `also` that were named beyond the best: ids and log-probabilities [1, n]."""
        answer = self.answer(at)
        if answer.named is None:
            return answer.ids, answer.logprobs
        named = np.asarray(also, dtype=answer.ids.dtype)
        beyond = ~np.isin(named, answer.ids)
        return (
            np.append(answer.ids, named[None, beyond], axis=1),
            np.append(answer.logprobs, answer.named[:, beyond], axis=1),
        )

    def look_row(self, at: int) -> int:
        """The row of the engine's last answer that is the distribution at boundary `at`, from the end."""
        rows = 0 if self.latest is None else len(self.latest.ids)
        return self.standing if rows <= 1 else min(at, rows - 1) - rows

    def end_draft(self, at: int) -> None:
        """Keep the draft up to boundary `at`, and what was answered there."""
        if self.points:
            self.standing = self.look_row(at)
            self.latest = self.answer(at)
            self.back_to(self.points[at])
            self.points = []
