"""Candidates: the configurations of an ensemble that are worth trying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any, get_args

from fusion.options import AUTO, DRAFTERS, Combine, FusionParams, Measure, Weighting
from fusion.step import COMBINATIONS

UNIFORM = "uniform"
PROMPT_WEIGHTS: tuple[Measure, ...] = ("packllm-sim", "packllm-opt")
PRUNED = (0.05, 0.3, 1.0)  # the last leaves the heaviest member alone
SURE = 1.0  # how much confidence counts where it is tried
STRENGTHS = {  # of a sum of log-probabilities: the option that says how much, and what is tried
    "contrast": ("beta", (0.25, 0.5, 1.0)),
    "proxy": ("scale", (0.5, 1.0, 2.0)),
    "guidance": ("scale", (1.25, 1.5, 2.0)),
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to answer.

    Attributes:
        members: who takes part, in the file's order; one alone is the model by itself.
        pivot: whose tokens are emitted.
        alignment: the method of the maps; "" where there is one member.
        combine: how distributions are combined.
        weights: `uniform`, `as configured`, or a method of weighting.
        prune: of the method.
        offsets: of the method, by member.
        confidence: how much the members' entropy counts in each round.
        strength: of the configured sum of log-probabilities (`STRENGTHS`); None for the configured one.
    """

    members: tuple[str, ...]
    pivot: str
    alignment: str = ""
    combine: Combine = "mixture"
    weights: str = UNIFORM
    prune: float = 0.0
    offsets: tuple[tuple[str, float], ...] = ()
    confidence: float = 0.0
    strength: float | None = None

    @property
    def alone(self) -> bool:
        """Whether it is one model by itself."""
        return len(self.members) == 1 and self.weights == UNIFORM

    @property
    def name(self) -> str:
        """In a few words; candidates are told apart by it."""
        if self.alone:
            return f"{self.pivot} alone"
        weights = f"centred {self.weights}" if self.offsets else self.weights
        weights += f", prune {self.prune:g}" if self.prune else ""
        weights += f", confidence {self.confidence:g}" if self.confidence else ""
        weights += f", strength {self.strength:g}" if self.strength is not None else ""
        return f"{'+'.join(self.members)}, pivot {self.pivot}, {self.alignment}, {self.combine}, {weights}"

    def fusion(self, configured: FusionParams) -> FusionParams:
        """Its options, where the file's are `configured`."""
        if self.alone:
            return FusionParams()
        if self.weights == AS_CONFIGURED:
            changed = {} if self.strength is None else strengthened(configured, self.strength)
            return replace(configured, members=self.members, report=True, **changed)
        measures = {measure: measure for measure in get_args(Measure)}
        method = measures.get(self.weights, "given")
        offsets = dict(self.offsets) or None
        weighting = replace(configured.weighting, method=method, prune=self.prune, offsets=offsets)
        return replace(
            configured,
            members=self.members,
            weights=None,
            weighting=weighting if method != "given" else Weighting(),
            combine=self.combine,
            confidence=self.confidence,
            draft=self.draft(configured.draft),
            report=True,
        )

    def draft(self, configured: str | None) -> str | None:
        """Who drafts, where the file says `configured`: nobody, if that member is left out."""
        return configured if configured in (*DRAFTERS, *self.members) else None


AS_CONFIGURED = "as configured"


def strengthened(configured: FusionParams, strength: float) -> dict[str, Any]:
    """The named sum of an ensemble with another strength, as the option to replace."""
    return {
        name: replace(given, **{option: strength})
        for name, (option, _) in STRENGTHS.items()
        if (given := getattr(configured, name)) is not None
    }


def sums_worth_trying(configured: FusionParams, own: Candidate, uniform: Candidate) -> list[Candidate]:
    """For an ensemble that adds up log-probabilities: as it is, with other strengths, and an equal mixture."""
    found = [own]
    for name, (option, tried) in STRENGTHS.items():
        if (given := getattr(configured, name)) is not None:
            found += [replace(own, strength=one) for one in tried if one != getattr(given, option)]
    return found if uniform.alone else [*found, uniform]


def worth_trying(members: Sequence[str], alignments: Sequence[str], pivots: Sequence[str]) -> list[Candidate]:
    """Every pivot of these with every alignment, combination and weighting.

    With the first alignment alone are tried weights that are measured on the prompt, equal ones by confidence, and
    subsets of the members (each without one of them, down to two): not the full grid, whose rest the best of these
    would have to be combined from.
    """
    everyone = tuple(members)
    found: list[Candidate] = []
    for pivot, combine in product(pivots, COMBINATIONS):
        found += [Candidate(everyone, pivot, alignment, combine) for alignment in alignments]
        found += [Candidate(everyone, pivot, alignments[0], combine, weights) for weights in PROMPT_WEIGHTS]
    found += [Candidate(everyone, pivot, alignments[0], confidence=SURE) for pivot in pivots]
    if len(everyone) > 2:
        for some in combinations(everyone, len(everyone) - 1):
            inside = [pivot for pivot in some if pivot in pivots] or [some[0]]
            found += [Candidate(some, pivot, alignments[0]) for pivot in inside]
    return list(dict.fromkeys(found))


def with_learned(
    members: Sequence[str], alignment: str, combine: Combine, configured: Candidate
) -> list[Candidate]:
    """What learned weights are compared with while they are chosen: the file's configuration, and equal weights.

    Learned weights close members of little weight, at several thresholds; the pivot is the heaviest member.
    `combine` is what they were fitted for; a mixture is tried whatever it is.
    """
    everyone = tuple(members)
    found = [configured]
    found += [Candidate(everyone, pivot, alignment) for pivot in everyone]
    ways: tuple[Combine, ...] = (combine, "mixture")
    for way in ways:
        found += [Candidate(everyone, AUTO, alignment, way, "learned", prune) for prune in PRUNED]
    return list(dict.fromkeys(found))


def other_weights(uniform: Candidate, offsets: Mapping[str, Mapping[str, float]]) -> list[Candidate]:
    """What learned weights are compared with at last, around the pivot of `uniform`.

    That is PackLLM's weights, plain and with the members' usual losses taken off, and weights by confidence.
    `offsets` are those losses, by pivot and member.
    """
    usual = tuple(offsets.get(uniform.pivot, {}).items())
    found = []
    for weights in PROMPT_WEIGHTS:
        plain = replace(uniform, weights=weights)
        found += [plain, replace(plain, offsets=usual)] if usual else [plain]
    return [*found, replace(uniform, confidence=SURE)]
