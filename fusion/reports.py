"""Reports on a sequence: its rounds, the measurement behind its weights, and where its time went."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fusion.options import Measure


@dataclass(frozen=True, slots=True)
class RoundReport:
    """The part of each member in one round, by member name.

    Members that were not asked, or could not spell the text, are missing: all of them for a token that a
    constraint forced.

    Attributes:
        token: the id that was chosen.
        weights: those in force after the filter; 0 for a member left out.
        kept: who passed the filter.
        contribution: each member's share of the chosen token's fused probability; they sum to 1 in a mixture.
            In a sum of log-probabilities its term of the chosen token, in nats.
        mass: the probability that reached the pivot's vocabulary through the member's map.
        rolled_back: the tokens taken back before this round.
        cut: in a sum, the pivot's probability beyond its listed tokens where these end before the mask does, so
            that it was not wholly applied.
        text: what the token adds to the answer, in whole characters: one that several tokens spell stands with
            the last of them. Empty for tokens without text.
        drafted: whether the token had been drafted and the members checked it.
        ran: the members whose distributions were fused.
    """

    token: int
    weights: dict[str, float]
    kept: dict[str, bool]
    contribution: dict[str, float]
    mass: dict[str, float]
    rolled_back: dict[str, int]
    cut: float | None = None
    text: str = ""
    ran: tuple[str, ...] = ()
    drafted: bool = False


@dataclass(frozen=True, slots=True)
class WeightingReport:
    """The measurement behind the weights of a sequence; by member where not said otherwise.

    Attributes:
        method: what was used, which is not what was asked for where `notes` say so.
        perplexity: of the text that all members share; empty where there was nothing to measure.
        weights: after pruning, summing to 1.
        pruned: who was closed.
        tokens: of the pivot in the text that counted.
        scored: positions that were scored for this request.
        kept: tokens of the pivot whose scores were known from an earlier request.
        coinciding: positions among those that counted at which all members' tokens begin.
        notes: sentences about what could not be done.
        features: of learned weights, what spoke for the member that leads, by word or measure, in nats over the
            mean of the members.
        similarity: of learned weights, what the prompt has in common with the questions that they were fitted on.
    """

    method: Literal["uniform", "fixed", Measure]
    perplexity: dict[str, float]
    weights: dict[str, float]
    pruned: tuple[str, ...]
    tokens: int
    scored: dict[str, int]
    kept: int
    coinciding: int
    notes: tuple[str, ...]
    features: dict[str, float] = field(default_factory=dict)
    similarity: float | None = None

    @property
    def leader(self) -> str | None:
        """The member that weighs the most; None where several do."""
        best = max(self.weights.values(), default=0.0)
        leading = [name for name, weight in self.weights.items() if weight == best]
        return leading[0] if len(leading) == 1 else None


@dataclass(slots=True)
class Account:
    """The time of a sequence by where it was spent. Points in time are `time.perf_counter`'s.

    Attributes:
        submitted: when it joined the waiting line.
        started: when every member had room for it; None while it waits.
        prompts: by member, when it had answered the prompt.
        reused: by member, the tokens of the prompt that it did not have to compute (`NextTokens.reused`).
        rounds: how many there were.
        waiting: seconds that rounds after the first waited for members.
        fusion: seconds in which distributions were fused, for it and the others of its batches.
        sampling: seconds in which tokens were drawn, for it and the others of its batches.
    """

    submitted: float
    started: float | None = None
    prompts: dict[str, float] = field(default_factory=dict)
    reused: dict[str, int] = field(default_factory=dict)
    rounds: int = 0
    waiting: float = 0.0
    fusion: float = 0.0
    sampling: float = 0.0
