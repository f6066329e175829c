"""Observer: callbacks for metrics, and the load and the round that they measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from fusion.core import Floats, Member
from fusion.reports import WeightingReport
from fusion.round import Round
from fusion.step import renormalize

if TYPE_CHECKING:
    from fusion.sequence import sequence as generation

# A member that was given work and has sent no answer for this many seconds does not answer any more. The longest
# step of a prompt on a slow machine is far shorter.
SILENCE = 300.0
SMALLEST = np.finfo(np.float64).tiny  # has a logarithm, unlike 0
# Why a sequence goes on without a member: the text outgrew its cache, it is down, it failed at this sequence.
Leaving = Literal["outgrown", "lost", "failed"]


@dataclass(frozen=True, slots=True)
class MemberLoad:
    """The load of a member: open sequences, tokens in its cache, tokens set aside there, and its size.

    `up` says whether it answers: it is not down, and has not let its work lie for `SILENCE` seconds.
    """

    up: bool
    sequences: int
    cached_tokens: int
    reserved_tokens: int
    cache_tokens: int


@dataclass(frozen=True, slots=True)
class Load:
    """The load of the fuser: sequences running and waiting by ensemble, and of each member by name."""

    running: dict[str, int]
    waiting: dict[str, int]
    waiting_limit: int
    members: dict[str, MemberLoad]


class Observer:
    """Told of everything the fuser does, on the fuser's thread, while the members are at their next work.

    Does nothing itself: those who measure override what they want. No method may block.
    """

    def answered(self, member: str, step: float, prompts: Sequence[float], tokens: Sequence[float]) -> None:
        """A member answered; seconds since it was given each prompt, or the tokens of each round.

        `step` is how long its engine's step took that the answers come from, 0 if that is not known.
        """

    def fused(self, done: Round) -> None:
        """A batch of sequences got a token each."""

    def drafted(self, model: str, drafted: int, accepted: int, lost: int) -> None:
        """A draft is over: of so many tokens that members scored, these were what was drawn.

        `lost` were proposed, but not scored: a member's spelling changes there, or it cannot follow.
        """

    def weighed(self, model: str, report: WeightingReport) -> None:
        """A sequence's weights were decided by its prompt; the members that were pruned are closed."""

    def rolled_back(self, model: str, member: str, tokens: int) -> None:
        """A member takes tokens back, because the text is cut differently."""

    def left(self, model: str, member: str, reason: Leaving) -> None:
        """A sequence goes on without a member, or begins without it."""

    def went_down(self, member: str) -> None:
        """A member lost its engine."""

    def came_back(self, member: str) -> None:
        """A member has an engine again."""


def member_load(
    member: Member,
    running: Sequence[generation.Sequence],
    *,
    there: bool,
    heard: float,
    reserved: int,
    view: str | None = None,
) -> MemberLoad:
    """Return the load of a member from the sequences that run.

    Args:
        there: whether it has an engine.
        heard: when it last answered anybody, on `time.perf_counter`'s clock.
        reserved: tokens set aside in its cache.
        view: one of the views that share it, for the load of that alone.
    """
    seats = [
        (sequence, seat)
        for sequence in running
        for name in sequence.on_engine(member.name)
        if view in (None, name) and (seat := sequence.seats.get(name)) is not None  # closed by the fuser meanwhile
    ]
    reserved = reserved if view is None else sum(seat.reserved for _, seat in seats)
    owed = [sequence.sent for sequence, seat in seats if seat.latest is None]
    answers = not owed or perf_counter() - max(heard, min(owed)) < SILENCE
    return MemberLoad(
        up=there and answers,
        sequences=len(seats),
        cached_tokens=sum(seat.cached for _, seat in seats),
        reserved_tokens=reserved,
        cache_tokens=member.capacity.cache_tokens,
    )


def best_tokens(done: Round) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The candidate that each voter likes best, [S, M], and the one that is likeliest once fused, [S]."""
    return done.probabilities.argmax(axis=2), done.fused.argmax(axis=1)


def divergence(probabilities: Floats) -> Floats:
    """Jensen-Shannon divergence of distributions [S, M, C] that count equally; [S], in nats, 0 to log M.

    What a map lost is left out of account: rows are scaled to sum to 1, and those that are empty do not count.
    """
    rows = renormalize(probabilities)
    counted = np.maximum(rows.any(axis=2, keepdims=True).sum(axis=1), 1)
    spread: Floats = _entropy(rows.sum(axis=1) / counted) - _entropy(rows).sum(axis=1) / counted[:, 0]
    return np.clip(spread, 0.0, np.log(probabilities.shape[1]))  # rounding may leave less, or more


def _entropy(probabilities: Floats) -> Floats:
    """Over the last axis, in nats."""
    entropy: Floats = -np.einsum("...c,...c->...", probabilities, np.log(np.maximum(probabilities, SMALLEST)))
    return entropy
