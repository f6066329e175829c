"""A round for a batch of sequences: project, filter, combine, sample."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from fusion.core import RoundReport, Token, TokenLogProb
from fusion.sampling import is_plain, sample, sample_plain
from fusion.sequence.sequence import Sequence
from fusion.step import Candidates, combine_members, keep_the_pivots_cut, project

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a round of one sequence."""

    token: Token
    report: RoundReport | None


@dataclass(frozen=True, slots=True)
class Fused:
    """A round of a batch: outcome per sequence, and its arrays (shapes as in `fusion.loop.observer.Rounds`).

    `began`, `combined` and `ended` are times: of the round's start, of the fused distribution, of the choices.
    """

    voters: tuple[str, ...]
    outcomes: list[Outcome]
    probabilities: Floats
    weights: Floats
    kept: NDArray[np.bool_]
    fused: Floats
    began: float
    combined: float
    ended: float


def batch_key(sequence: Sequence) -> object:
    """Sequences with equal keys are fused in one call: same ensemble, pivot, voters, maps and combination."""
    return (
        sequence.ensemble.name,
        sequence.ensemble.pivot,
        sequence.voters,
        sequence.spelled,
        sequence.lead_spelled,
        sequence.fusion.combine,
        sequence.fusion.filter_top,
        sequence.fusion.renormalize,
        sequence.fusion.guard,
    )


def fuse(batch: list[Sequence]) -> Fused:
    """One round of sequences that share ensemble, voters, maps and combination."""
    began = perf_counter()
    first = batch[0]
    voters, fusion = first.voters, first.fusion
    candidates = gather(batch, voters)
    given = np.array([[sequence.weights[name] for name in voters] for sequence in batch])
    pivot = voters.index(first.ensemble.pivot)
    combined = combine_members(candidates.probabilities, given, pivot, fusion)
    fused = combined.fused
    if fusion.guard:
        own = candidates.probabilities[:, pivot]
        fused = keep_the_pivots_cut(fused, own, lambda row, i: batch[row].surface(int(candidates.tokens[row, i])))
    at = perf_counter()
    outcomes = []
    for row, chosen in enumerate(choose(batch, candidates.tokens, fused)):
        sequence, report = batch[row], None
        if sequence.fusion.report:
            parts = combined.shares[row], combined.weights[row], combined.kept[row]
            report = account(sequence, candidates, row, chosen, *parts)
        outcomes.append(Outcome(describe(sequence, candidates.tokens[row], fused[row], chosen), report))
    probabilities, weights, kept = candidates.probabilities, combined.weights, combined.kept
    return Fused(voters, outcomes, probabilities, weights, kept, fused, began, at, perf_counter())


def gather(batch: list[Sequence], voters: tuple[str, ...]) -> Candidates:
    """The newest answers of the voters, projected into the pivot's vocabulary."""
    answers = []
    for name in voters:
        latest = [sequence.seats[name].latest for sequence in batch]
        ids = np.concatenate([answer.ids[-1:] for answer in latest if answer])
        logprobs = np.concatenate([answer.logprobs[-1:] for answer in latest if answer])
        answers.append((ids, logprobs))
    ensemble = batch[0].ensemble
    return project(answers, [batch[0].map_of(name) for name in voters], ensemble.vocabulary_size)


def choose(batch: list[Sequence], tokens: NDArray[np.int64], fused: Floats) -> list[int]:
    """A token for every sequence, drawn from the fused distributions [S, C] on `tokens` [S, C]."""
    chosen = [0] * len(batch)
    plain = [
        row for row, sequence in enumerate(batch) if sequence.constraint is None and is_plain(sequence.sampling)
    ]
    if plain:
        sequences = [batch[row] for row in plain]
        temperatures = np.array([sequence.sampling.temperature for sequence in sequences])
        draws = np.array([sequence.rng.random() for sequence in sequences])
        forbidden = [sequence.forbidden for sequence in sequences]
        drawn = sample_plain(tokens[plain], fused[plain], temperatures, forbidden, draws)
        for row, token in zip(plain, drawn, strict=True):
            chosen[row] = token
    for row in set(range(len(batch))).difference(plain):
        sequence = batch[row]
        probabilities, forbidden = fused[row], sequence.forbidden
        if (constraint := sequence.constraint) is not None:
            probabilities = np.where(constraint.allowed(tokens[row].astype(np.int32)), probabilities, 0.0)
            if not probabilities.any():
                chosen[row] = constraint.fallback()
                continue
            mask = constraint.mask()
            forbidden |= {token for token in sequence.sampling.logit_bias if not mask[token]}
        chosen[row] = sample(
            tokens[row],
            probabilities,
            sequence.sampling,
            generated=sequence.generated,
            prompt=sequence.prompt_ids,
            forbidden=forbidden,
            rng=sequence.rng,
        )
    return chosen


def describe(sequence: Sequence, tokens: NDArray[np.int64], fused: Floats, chosen: int) -> Token:
    """The chosen token and its best alternatives, with log-probabilities before bias, penalties and temperature.

    A mixture's probabilities sum to less than 1 where members are truncated or maps lose mass (and to more where
    a learned map gains some); they are reported as they are up to 1, and normalised above.
    """
    wanted = sequence.sampling.logprobs
    excess = max(float(fused.sum()), 1.0) if wanted is not None else 1.0

    def entry(token: int, probability: float) -> TokenLogProb:
        logprob = float(np.log(probability / excess)) if probability > 0 else -np.inf
        return TokenLogProb(token, sequence.surface(token), logprob)

    where = np.flatnonzero(tokens == chosen)
    token = entry(chosen, float(fused[where[0]]) if len(where) else 0.0)
    if not wanted:
        return Token(token)
    best = np.argsort(-fused, kind="stable")[:wanted]
    return Token(token, tuple(entry(int(tokens[i]), float(fused[i])) for i in best if fused[i] > 0))


def account(
    sequence: Sequence,
    candidates: Candidates,
    row: int,
    chosen: int,
    shares: Floats,
    weights: Floats,
    kept: NDArray[np.bool_],
) -> RoundReport:
    """Who did what in this round; `shares` [M, C] are the members' probabilities as they were combined."""
    voters = sequence.voters
    where = np.flatnonzero(candidates.tokens[row] == chosen)
    share = weights * (shares[:, where[0]] if len(where) else 0.0)
    total = share.sum()
    share = share / total if total > 0 else share

    def by_member(values: Floats) -> dict[str, float]:
        return dict(zip(voters, values.tolist(), strict=True))

    return RoundReport(
        token=chosen,
        weights=by_member(weights),
        kept=dict(zip(voters, kept.tolist(), strict=True)),
        contribution=by_member(share),
        mass=by_member(candidates.probabilities[row].sum(axis=1)),
        rolled_back={name: sequence.seats[name].rolled_back for name in voters},
    )
