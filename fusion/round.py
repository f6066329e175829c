"""A round for a batch of sequences: project, filter, combine, sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from fusion.core import Floats, Ids, LogProbs, Token
from fusion.options import AUTO
from fusion.reports import RoundReport
from fusion.sampling import draw, is_plain, sample_plain
from fusion.sequence.likelihoods import note_likelihoods, note_trust, weights_now
from fusion.sequence.sequence import Sequence
from fusion.step import Candidates, Fused, fuse, keep_the_pivots_cut, of_one_width, project
from fusion.tokens import described


@dataclass(slots=True)
class Round:
    """A round of a batch of S sequences that share ensemble and voters (M of them), over C candidates.

    Points in time are `time.perf_counter`'s. What is known only once the round is accounted for has a default
    (see `fusion.loop.timing`).

    Attributes:
        model: the ensemble's name.
        voters: the members whose distributions were fused.
        probabilities: [S, M, C], the voters' distributions in the pivot's vocabulary, as their maps left them, of
            what is admitted.
        mass: [S, M], what reached the pivot's vocabulary of their distributions, admitted or not.
        weights: [S, M], those in force after the filter.
        kept: [S, M], who passed the filter.
        fused: [S, C], what the tokens were drawn from.
        began: when it began.
        combined: when the fused distributions were there.
        ended: when the tokens were drawn.
        tokens: what was drawn, one for each sequence.
        reports: for each sequence, where it was asked for.
        waiting: seconds from the first member having its work to the round, for the sequences that have had a
            round before (what comes before the first is the prompt).
        last: of each sequence that several members answered, who came last and how many seconds after the one
            before.
        policies: for each sequence the policy that decided who was asked, `always` where that was everyone for one
            token.
        absent: the members that sat out because they cannot spell the text yet, once per sequence.
        synchronisation: seconds from the end to the first member having its next work; the others follow at once.
    """

    model: str
    voters: tuple[str, ...]
    probabilities: Floats
    mass: Floats
    weights: Floats
    kept: NDArray[np.bool_]
    fused: Floats
    began: float
    combined: float
    ended: float
    tokens: list[Token] = field(default_factory=list)
    reports: list[RoundReport | None] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    last: list[tuple[str, float]] = field(default_factory=list)
    policies: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    synchronisation: float = 0.0

    @property
    def fusion(self) -> float:
        """Seconds to project, filter and combine."""
        return self.combined - self.began

    @property
    def sampling(self) -> float:
        """Seconds to draw and describe the tokens."""
        return self.ended - self.combined


def batch_key(sequence: Sequence) -> object:
    """Sequences with equal keys are fused in one call: same ensemble, pivot, voters, maps and combination."""
    return (
        sequence.ensemble.name,
        sequence.view.pivot,
        sequence.voters,
        sequence.spelled,
        sequence.lead_spelled,
        sequence.ends.distinct,
        sequence.ends.kept,
        sequence.inside,
        sequence.marked,
        sequence.fusion.combine,
        sequence.fusion.filter_top,
        sequence.fusion.renormalize,
        sequence.fusion.unmapped,
        sequence.fusion.guard,
        sequence.fusion.confidence,
        sequence.terms is not None,
    )


def undo_of(batch: list[Sequence]) -> Callable[[], None]:
    """What takes back all that a round that fails has changed of its sequences, from now."""
    before = [
        (one, one.rng.bit_generator.state, one.characters.getstate(), dict(one.likelihoods), one.trust)
        for one in batch
    ]

    def undo() -> None:
        for one, drawn, characters, likelihoods, trust in before:
            one.rng.bit_generator.state = drawn
            one.characters.setstate(characters)
            one.likelihoods, one.trust = likelihoods, trust

    return undo


def run_round(batch: list[Sequence]) -> Round:
    """One round of sequences that share ensemble, voters, maps and combination."""
    began = perf_counter()
    first = batch[0]
    voters, fusion = first.voters, first.fusion
    pivot = voters.index(first.view.pivot) if first.view.pivot in voters else 0
    if first.terms is not None:
        candidates, result = add_up(batch, voters)
        admitted = admissible(batch, candidates.tokens)
    else:
        candidates = gather(batch, voters)
        admitted = admissible(batch, candidates.tokens)
        given = np.array([weights_now(sequence, voters) for sequence in batch])
        named = favoured(batch, candidates) if fusion.combine == "product" else None
        result = fuse(candidates.probabilities, given, pivot, first.view.mapped(voters), fusion, named, admitted)
    mass, fused = candidates.probabilities.sum(axis=2), result.distribution
    if admitted is not None:
        candidates = Candidates(candidates.tokens, candidates.probabilities * admitted[:, None])
        fused = fused * admitted
    if fusion.guard:
        own = candidates.probabilities[:, pivot]
        fused = keep_the_pivots_cut(fused, own, lambda row, i: batch[row].surface(int(candidates.tokens[row, i])))
    for row, sequence in enumerate(batch):
        if sequence.constraint is not None:
            fused[row] /= fused[row].sum() or 1.0  # of what is admitted
    combined = perf_counter()
    tokens, reports = [], []
    for row, chosen in enumerate(choose(batch, candidates.tokens, fused)):
        sequence = batch[row]
        if sequence.likelihoods:
            given = result.shares[row][:, candidates.tokens[row] == chosen].sum(axis=1)
            note_trust(sequence, chosen, dict(zip(voters, given.tolist(), strict=True)))
        note_likelihoods(sequence, chosen)
        wanted = sequence.fusion.report
        reports.append(report(sequence, candidates, mass, row, chosen, result) if wanted else None)
        tokens.append(
            described(chosen, candidates.tokens[row], fused[row], sequence.sampling.logprobs, sequence.surface)
        )
    for row, (sequence, token) in enumerate(zip(batch, tokens, strict=True)):
        if len(voters) > 1 and (sequence.fusion.draft == AUTO or sequence.fusion.gate == "confident"):
            note_followed(sequence, candidates, row, token.chosen.id)
    return Round(
        first.ensemble.name,
        voters,
        candidates.probabilities,
        mass,
        result.weights,
        result.kept,
        fused,
        began,
        combined,
        perf_counter(),
        tokens,
        reports,
    )


def note_followed(sequence: Sequence, candidates: Candidates, row: int, chosen: int) -> None:
    """Note whose best token was chosen."""
    best = candidates.tokens[row, candidates.probabilities[row].argmax(axis=1)]
    sequence.followed.chose(chosen, dict(zip(sequence.voters, best.tolist(), strict=True)))


def gather(batch: list[Sequence], voters: tuple[str, ...]) -> Candidates:
    """The newest answers of the voters, projected into the pivot's vocabulary."""
    answers = []
    for name in voters:
        rows = [listed(sequence, name) for sequence in batch]
        ids, logprobs = (np.concatenate(part) for part in zip(*of_one_width(rows), strict=True))
        answers.append((ids, logprobs))
    inside = batch[0].inside  # where they are in the pivot's vocabulary already
    maps = [None if name in inside else batch[0].map_of(name) for name in voters]
    return project(answers, maps, batch[0].view.vocabulary_size)


def add_up(batch: list[Sequence], voters: tuple[str, ...]) -> tuple[Candidates, Fused]:
    """The sums of log-probabilities of a batch, each over candidates of its own."""
    sums = [sequence.sum for sequence in batch]
    width = max(len(one.tokens) for one in sums if one is not None)
    tokens = np.full((len(batch), width), -1, dtype=np.int64)
    shares = np.zeros((len(batch), len(voters), width))
    weights, fused = np.zeros((len(batch), len(voters))), np.zeros((len(batch), width))
    for row, one in enumerate(sums):
        assert one is not None, "a round begins when the members have been asked"
        size = len(one.tokens)
        tokens[row, :size], fused[row, :size] = one.tokens, one.distribution()
        for column, name in enumerate(voters):
            weights[row, column] = one.weights.get(name, 0.0)
            if name in one.logs:
                shares[row, column, :size] = np.exp(np.nan_to_num(one.logs[name], nan=-np.inf))
    kept = np.ones(weights.shape, dtype=np.bool_)
    return Candidates(tokens, shares), Fused(shares, weights, kept, fused)


def admissible(batch: list[Sequence], tokens: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """The candidates [S, C] that the sequences' constraints admit; None where no sequence has one."""
    if all(sequence.constraint is None for sequence in batch):
        return None
    found = np.ones(tokens.shape, dtype=np.bool_)
    for row, sequence in enumerate(batch):
        if sequence.constraint is not None:
            found[row] = sequence.constraint.allowed(tokens[row])
    return found


def favoured(batch: list[Sequence], candidates: Candidates) -> NDArray[np.bool_] | None:
    """The candidates [S, C] that a bias favours, which members were asked about; None where there are none."""
    wanted = [[id for id, value in s.sampling.logit_bias.items() if value > 0] for s in batch]
    if not any(wanted):
        return None
    return np.stack([np.isin(tokens, ids) for tokens, ids in zip(candidates.tokens, wanted, strict=True)])


def listed(sequence: Sequence, name: str) -> tuple[Ids, LogProbs]:
    """A member's k best ids and the named ones beyond them, [1, n], with their log-probabilities [1, n].

    Inside a character, ids of the pivot.
    """
    seat = sequence.seats[name]
    return seat.inside if seat.inside is not None else seat.listed(sequence.cursor, sequence.bias.of(name)[0])


def choose(batch: list[Sequence], tokens: NDArray[np.int64], fused: Floats) -> list[int]:
    """A token for every sequence, drawn from the fused distributions [S, C] on `tokens` [S, C].

    An end, where all that members list are tokens that the others could not follow.
    """
    chosen = [sequence.view.end for sequence in batch]
    possible: NDArray[np.bool_] = fused.sum(axis=1) > 0
    free = [row for row, sequence in enumerate(batch) if sequence.constraint is not None or possible[row]]
    plain = [row for row in free if batch[row].constraint is None and is_plain(batch[row].sampling)]
    if plain:
        sequences = [batch[row] for row in plain]
        temperatures = np.array([sequence.sampling.temperature for sequence in sequences])
        draws = np.array([sequence.rng.random() for sequence in sequences])
        forbidden = [sequence.ends.forbidden(sequence.length) for sequence in sequences]
        drawn = sample_plain(tokens[plain], fused[plain], temperatures, forbidden, draws)
        for row, token in zip(plain, drawn, strict=True):
            chosen[row] = token
    for row in set(free).difference(plain):
        sequence = batch[row]
        chosen[row] = draw(
            tokens[row],
            fused[row],
            sequence.sampling,
            sequence.constraint,
            generated=sequence.generated,
            prompt=sequence.prompt_ids,
            forbidden=sequence.ends.forbidden(sequence.length),
            rng=sequence.rng,
        )
    return chosen


def report(
    sequence: Sequence, candidates: Candidates, mass: Floats, row: int, chosen: int, result: Fused
) -> RoundReport:
    """Each member's part in the round of one sequence, which is `row` of its batch."""
    voters, weights = sequence.voters, result.weights[row]
    where = np.flatnonzero(candidates.tokens[row] == chosen)
    given = result.shares[row][:, where[0]] if len(where) else np.zeros(len(voters))
    if sequence.terms is None:
        share = weights * given
        total = share.sum()
        share = share / total if total > 0 else share
    else:
        share = weights * np.log(np.where(given > 0, given, 1.0))

    def by_member(values: Floats) -> dict[str, float]:
        return dict(zip(voters, values.tolist(), strict=True))

    return RoundReport(
        token=chosen,
        weights=by_member(weights),
        kept=dict(zip(voters, result.kept[row].tolist(), strict=True)),
        contribution=by_member(share),
        mass=by_member(mass[row]),
        rolled_back={name: sequence.seats[name].rolled_back_at(sequence.cursor) for name in voters},
        cut=None if sequence.sum is None else sequence.sum.cut,
        text=sequence.characters.decode(sequence.surface(chosen)),
        ran=voters,
        drafted=sequence.drafted(chosen),
    )
