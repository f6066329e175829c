"""Metrics of members and rounds, fed by the fuser's observer callbacks."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from fusion.loop.observer import Leaving, Observer, best_tokens, divergence
from fusion.policy.registry import POLICIES
from fusion.reports import WeightingReport
from fusion.round import Round
from server.telemetry.metrics.catalogue import DEGRADED_REASONS, DROP_REASONS, PHASES, STAGES, Catalogue

if TYPE_CHECKING:
    from fusion.ensemble import Ensemble

DIVERGENCE_EVERY = 16  # rounds; logarithms of every candidate of every member cost the most to measure
HELD_PROBABILITIES = 1 << 18  # probabilities that rounds keep until they are counted: 2 MiB per served name


class DecodingMetrics(Observer):
    """Feeds the metrics of members and rounds. Everything that has a label is bound once, here at the start.

    Events of every round are noted in a journal; rare events are counted at once.
    """

    def __init__(self, catalogue: Catalogue, ensembles: Mapping[str, Ensemble]) -> None:
        members = {member for ensemble in ensembles.values() for member in ensemble.models}
        self._models = {name: _Model(catalogue, name, list(each.models)) for name, each in ensembles.items()}
        self._rounds = {
            name: catalogue.journal(model.count, HELD_PROBABILITIES) for name, model in self._models.items()
        }
        self._answers = {member: catalogue.journal(_Answers(catalogue, member).count) for member in members}
        # Views are members, and it is their engine that comes back.
        engines = {each.engine(member) for each in ensembles.values() for member in each.models}
        self._restarts = {name: catalogue.member_restarts.labels(name) for name in sorted(members | engines)}

    def answered(self, member: str, step: float, prompts: Sequence[float], tokens: Sequence[float]) -> None:
        """Time the member's engine, and the member as seen from here."""
        if member in self._answers:  # not a view that a request has added
            self._answers[member].add((step, prompts, tokens))

    def fused(self, done: Round) -> None:
        """Account for a batch of rounds."""
        self._rounds[done.model].add(done, done.probabilities.size)

    def drafted(self, model: str, drafted: int, accepted: int, lost: int) -> None:
        """Count a draft."""
        of = self._models[model]
        of.drafted.inc(drafted)
        of.accepted.inc(accepted)
        of.lost.inc(lost)

    def weighed(self, model: str, report: WeightingReport) -> None:
        """Account for weights that were measured on a prompt."""
        seats = self._models[model].seats
        for member, perplexity in report.perplexity.items():
            if member in seats:
                seats[member].prompt_nats.observe(math.log(perplexity))
        for member in report.pruned:
            if member in seats:
                seats[member].pruned.inc()
        if report.leader in seats:
            seats[report.leader].leads.inc()

    def rolled_back(self, model: str, member: str, tokens: int) -> None:
        """Count what re-tokenisation costs."""
        seat = self._models[model].seats.get(member)
        if seat is not None:
            seat.rollbacks.inc()
            seat.rollback_tokens.inc(tokens)

    def left(self, model: str, member: str, reason: Leaving) -> None:
        """Count a sequence that goes on without a member."""
        self._models[model].degraded[reason].inc()

    def came_back(self, member: str) -> None:
        """Count a restart."""
        self._restarts[member].inc()


class _Answers:
    """A member's answers: seconds that the engine's step took, and that prompts and tokens took."""

    def __init__(self, catalogue: Catalogue, member: str) -> None:
        self.step = catalogue.member_step.labels(member)
        self.prompts, self.tokens = (catalogue.member_answer.labels(member, phase) for phase in PHASES)

    def count(self, told: list[tuple[float, Sequence[float], Sequence[float]]]) -> None:
        steps, prompts, tokens = zip(*told, strict=True)
        self.step.observe_all([seconds for seconds in steps if seconds])  # 0 where it is not known
        self.prompts.observe_all(list(chain(*prompts)))
        self.tokens.observe_all(list(chain(*tokens)))


class _Model:
    """The rounds of one served name. Metrics that compare members are measured where there are several."""

    def __init__(self, catalogue: Catalogue, name: str, members: Sequence[str]) -> None:
        self.rounds = catalogue.rounds.labels(name)
        self.stages = {stage: catalogue.round_stage.labels(name, stage) for stage in STAGES}
        self.straggler_wait = catalogue.straggler_wait.labels(name)
        self.survivors = catalogue.surviving_members.labels(name)
        self.disagreements = catalogue.disagreement_rounds.labels(name)
        self.divergence = catalogue.divergence.labels(name)
        self.degraded = {reason: catalogue.degraded_requests.labels(name, reason) for reason in DEGRADED_REASONS}
        self.seats = {member: _Seat(catalogue, name, member) for member in members} if len(members) > 1 else {}
        self.compared = 0  # batches so far
        self.drafted = catalogue.draft_tokens.labels(name)
        self.accepted = catalogue.draft_accepted.labels(name)
        self.lost = catalogue.draft_lost.labels(name)
        self.policies = {policy: catalogue.policy_rounds.labels(name, policy) for policy in POLICIES}

    def count(self, told: list[Round]) -> None:
        self.rounds.inc(sum(len(rounds.weights) for rounds in told))
        self.stages["waiting"].observe_all(list(chain(*(rounds.waiting for rounds in told))))
        later = [len(rounds.waiting) for rounds in told]  # rounds that are not their sequence's first
        for stage in STAGES[1:]:
            self.stages[stage].observe_all(np.repeat([getattr(rounds, stage) for rounds in told], later))
        for policy, times in Counter(chain(*(rounds.policies for rounds in told))).items():
            self.policies[policy].inc(times)
        if self.seats:
            self._compare(told)

    def _compare(self, told: list[Round]) -> None:
        last = list(chain(*(rounds.last for rounds in told)))
        self.straggler_wait.observe_all([seconds for _, seconds in last])
        for name, times in Counter(name for name, _ in last if name in self.seats).items():
            self.seats[name].straggler_rounds.inc(times)
        absent = Counter(name for rounds in told for name in rounds.absent if name in self.seats)
        for name, times in absent.items():
            self.seats[name].drops["spelling"].inc(times)
            self.seats[name].weight.observe_all(np.zeros(times))
        alike: defaultdict[tuple[str, ...], list[Round]] = defaultdict(list)
        for rounds in told:
            alike[rounds.voters].append(rounds)
            self.compared += 1
            if self.compared % DIVERGENCE_EVERY == 1 and len(rounds.voters) > 1:
                self.divergence.observe_all(divergence(rounds.probabilities))
        for voters, group in alike.items():
            self._count_votes(voters, group)

    def _count_votes(self, voters: tuple[str, ...], told: list[Round]) -> None:
        mass, weights, kept = (
            np.concatenate([getattr(r, what) for r in told]) for what in ("mass", "weights", "kept")
        )  # [N, M]
        best, winner = map(np.concatenate, zip(*map(best_tokens, told), strict=True))  # [N, M], [N]
        self.survivors.observe_all(kept.sum(axis=1))
        self.disagreements.inc(int((best != best[:, :1]).any(axis=1).sum()))
        for index, name in enumerate(voters):
            if name not in self.seats:
                continue
            seat = self.seats[name]
            seat.weight.observe_all(weights[:, index])
            seat.mass.observe_all(mass[:, index])
            seat.differs.inc(int((best[:, index] != winner).sum()))
            seat.drops["filter"].inc(int((~kept[:, index]).sum()))


class _Seat:
    """The series of one member of one ensemble."""

    def __init__(self, catalogue: Catalogue, model: str, member: str) -> None:
        self.straggler_rounds = catalogue.straggler_rounds.labels(model, member)
        self.weight = catalogue.member_weight.labels(model, member)
        self.mass = catalogue.mapped_mass.labels(model, member)
        self.differs = catalogue.fused_differs.labels(model, member)
        self.drops = {reason: catalogue.filter_drops.labels(model, member, reason) for reason in DROP_REASONS}
        self.rollbacks = catalogue.rollbacks.labels(model, member)
        self.rollback_tokens = catalogue.rollback_tokens.labels(model, member)
        self.pruned = catalogue.pruned_members.labels(model, member)
        self.leads = catalogue.leads.labels(model, member)
        self.prompt_nats = catalogue.member_prompt_nats.labels(model, member)
