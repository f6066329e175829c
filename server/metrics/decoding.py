"""What the fuser tells of its work, as metrics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fusion.observe import Leaving, Observer, Rounds, best_tokens, divergence
from fusion.weighting import WeightingReport
from server.metrics.catalogue import DEGRADED_REASONS, DROP_REASONS, PHASES, STAGES, Catalogue

if TYPE_CHECKING:
    from fusion.ensemble import Ensemble

DIVERGENCE_EVERY = 16  # rounds; logarithms of every candidate of every member are the dearest there is to measure


class DecodingMetrics(Observer):
    """Feeds the metrics of members and rounds. Everything that has a label is bound once, here at the start.

    What compares members is measured for ensembles of several only.
    """

    def __init__(self, catalogue: Catalogue, ensembles: Mapping[str, Ensemble]) -> None:
        members = {member for ensemble in ensembles.values() for member in ensemble.models}
        self._models = {name: _Model(catalogue, name) for name in ensembles}
        self._seats = {
            (name, member): _Seat(catalogue, name, member)
            for name, ensemble in ensembles.items()
            if len(ensemble.models) > 1
            for member in ensemble.models
        }
        self._steps = {member: catalogue.member_step.labels(member) for member in members}
        self._answers = {
            member: [catalogue.member_answer.labels(member, phase) for phase in PHASES] for member in members
        }
        self._restarts = {member: catalogue.member_restarts.labels(member) for member in members}

    def stepped(self, member: str, seconds: float) -> None:
        """Time the engine."""
        self._steps[member].observe(seconds)

    def answered(self, member: str, prompts: Sequence[float], tokens: Sequence[float]) -> None:
        """Time the member, seen from here."""
        for series, seconds in zip(self._answers[member], (prompts, tokens), strict=True):
            series.observe_all(seconds)

    def fused(self, rounds: Rounds) -> None:
        """Account for a batch of rounds."""
        model = self._models[rounds.model]
        size = len(rounds.weights)
        model.rounds.inc(size)
        later = len(rounds.waiting)  # rounds that are not their sequence's first
        model.stages["waiting"].observe_all(rounds.waiting)
        model.stages["fusion"].observe_all([rounds.fusion] * later)
        model.stages["sampling"].observe_all([rounds.sampling] * later)
        model.stages["synchronisation"].observe_all([rounds.synchronisation] * later)
        if (rounds.model, rounds.voters[0]) in self._seats:
            self._compare(model, rounds)

    def weighed(self, model: str, report: WeightingReport) -> None:
        """Account for weights that were measured on a prompt."""
        for member, perplexity in report.perplexity.items():
            self._seats[model, member].prompt_nats.observe(math.log(perplexity))
        for member in report.pruned:
            self._seats[model, member].pruned.inc()

    def rolled_back(self, model: str, member: str, tokens: int) -> None:
        """Count what re-tokenisation costs."""
        seat = self._seats[model, member]
        seat.rollbacks.inc()
        seat.rollback_tokens.inc(tokens)

    def left(self, model: str, member: str, reason: Leaving) -> None:
        """Count a sequence that goes on without a member."""
        self._models[model].degraded[reason].inc()

    def came_back(self, member: str) -> None:
        """Count a restart."""
        self._restarts[member].inc()

    def _compare(self, model: _Model, rounds: Rounds) -> None:
        """What is of interest where several members take part."""
        model.straggler_wait.observe_all([seconds for _, seconds in rounds.last])
        for name, count in Counter(name for name, _ in rounds.last).items():
            self._seats[rounds.model, name].straggler_rounds.inc(count)
        for name in rounds.absent:
            seat = self._seats[rounds.model, name]
            seat.drops["spelling"].inc()
            seat.weight.observe(0.0)
        model.survivors.observe_all(rounds.kept.sum(axis=1).tolist())
        own, fused = best_tokens(rounds)
        disagreeing = int((own != own[:, :1]).any(axis=1).sum())
        if disagreeing:
            model.disagreements.inc(disagreeing)
        differing = (own != fused[:, None]).sum(axis=0).tolist()
        dropped = (~rounds.kept).sum(axis=0).tolist()
        weights = rounds.weights.T.tolist()
        masses = rounds.probabilities.sum(axis=2).T.tolist()
        for index, name in enumerate(rounds.voters):
            seat = self._seats[rounds.model, name]
            seat.weight.observe_all(weights[index])
            seat.mass.observe_all(masses[index])
            if differing[index]:
                seat.differs.inc(differing[index])
            if dropped[index]:
                seat.drops["filter"].inc(dropped[index])
        model.compared += 1
        if len(rounds.voters) > 1 and model.compared % DIVERGENCE_EVERY == 1:
            values: list[float] = np.minimum(divergence(rounds.probabilities), np.log(len(rounds.voters))).tolist()
            model.divergence.observe_all(values)


class _Model:
    """The series of one served name."""

    def __init__(self, catalogue: Catalogue, name: str) -> None:
        self.rounds = catalogue.rounds.labels(name)
        self.stages = {stage: catalogue.round_stage.labels(name, stage) for stage in STAGES}
        self.straggler_wait = catalogue.straggler_wait.labels(name)
        self.survivors = catalogue.surviving_members.labels(name)
        self.disagreements = catalogue.disagreement_rounds.labels(name)
        self.divergence = catalogue.divergence.labels(name)
        self.degraded = {reason: catalogue.degraded_requests.labels(name, reason) for reason in DEGRADED_REASONS}
        self.compared = 0  # batches so far


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
        self.prompt_nats = catalogue.member_prompt_nats.labels(model, member)
