"""Weighing: weights from the prompt's text or the members' scores of it, and the members to close."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fusion.core import Floats, Ids, LogProbs, Prompt, TextScores
from fusion.ensemble import Ensemble, View
from fusion.learned.features import PromptLosses, losses_of
from fusion.learned.weights import Decision, LearnedWeights
from fusion.options import DISTRIBUTIONAL, FusionParams, Measure
from fusion.reports import WeightingReport
from fusion.step import effective_weights, floored_logs, project, shares_of
from fusion.weights import greedy_weights, packllm_sim

# What the fused probability of a token counts as that no member gives any.
UNHEARD_OF = 1e-10
# A prompt of fewer tokens of the pivot says nothing about which member understands it.
FEWEST = 2


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a measure makes weights of: losses [M] in nats per token, and the scores that they come from.

    Losses are over the members' `offsets` [M], which are in nats per token of the pivot. `view` is the ensemble
    around the pivot that the prompt decided on. `prompt` is what was read.
    """

    losses: Floats
    offsets: Floats
    texts: Sequence[TextScores]
    view: View
    members: Sequence[str]
    fusion: FusionParams
    ensemble: Ensemble
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Measured:
    """The weights of a sequence, whose tokens are emitted, and the report, its costs still to be filled in."""

    pivot: str
    weights: dict[str, float]
    report: WeightingReport


def measure(
    texts: Sequence[TextScores],
    ensemble: Ensemble,
    members: Sequence[str],
    fusion: FusionParams,
    given: Mapping[str, float],
    pivot: str,
    prompt: Prompt,
) -> Measured:
    """Weigh the members by their scores of the prompt's texts. What cannot be measured ends in equal weights.

    Args:
        given: weights by member for the method `given`.
        pivot: the ensemble's, or who stands in for it where the prompt does not decide.
    """
    weighting = fusion.weighting
    notes: list[str] = []
    nats = np.array([sum(float(text.nats[name].sum()) for text in texts) for name in members])
    tokens = np.array([sum(int(text.tokens[name].sum()) for text in texts) for name in members])
    flawed = [name for name, one in zip(members, nats, strict=True) if not np.isfinite(one)]
    # In nats for this prompt: they are given per token of the pivot, or of who stands in for it.
    usual = np.array([(weighting.offsets or {}).get(name, 0.0) for name in members])
    usual *= int(tokens[members.index(pivot)])
    if ensemble.chooses_pivot and not flawed and tokens.any():
        pivot = members[int((nats - usual).argmin())]
    counted = int(tokens[members.index(pivot)])
    per = np.full(len(members), max(1, counted)) if weighting.normalize else np.maximum(tokens, 1)
    losses: Floats | None = None
    instead = "equal weights" if weighting.method != "given" else f"{pivot} is the pivot"
    if flawed:
        notes.append(f"{', '.join(flawed)} gave the prompt an infinite loss: {instead}.")
    elif counted < FEWEST:
        notes.append(f"The members share {counted} tokens of the prompt, too few to measure: {instead}.")
    else:
        losses = nats / per
    coinciding = sum(len(text.first[pivot]) for text in texts)
    method: Literal["given", Measure] = weighting.method
    if method in DISTRIBUTIONAL and losses is not None and coinciding < weighting.coinciding:
        notes.append(
            f"The members' tokens begin together at {coinciding} positions, of {weighting.coinciding} that "
            f"{method} needs: packllm-sim."
        )
        method = "packllm-sim"
    used: Literal["uniform", "fixed", Measure] = "uniform"
    decision = Decision(np.full(len(members), 1 / len(members)))
    if method == "given":
        if fusion.weights is not None:
            used, decision = "fixed", Decision(np.array([given[name] for name in members]))
    elif losses is not None:
        used = method
        over, view = losses - usual / per, ensemble.view(pivot)
        decision = WEIGHERS[method](
            Evidence(over, usual / counted, texts, view, members, fusion, ensemble, prompt)
        )
    if method == "learned" and ensemble.chooses_pivot:
        pivot = heaviest(decision.weights, members)
    threshold = None if method == "given" or losses is None else weighting.prune / _siblings(ensemble, members)
    measured = _settled(decision, members, pivot, threshold, used, notes)
    perplexity = {} if losses is None else dict(zip(members, np.exp(losses).tolist(), strict=True))
    report = replace(measured.report, perplexity=perplexity, tokens=counted, coinciding=coinciding)
    return replace(measured, report=report)


def decide(ensemble: Ensemble, prompt: Prompt, members: Sequence[str], fusion: FusionParams) -> Measured | None:
    """The learned weights, where the text of the prompt is all they take, so that no member has to read it first.

    None for every other method. All answers to a prompt share them.
    """
    learned = ensemble.learned
    if fusion.weighting.method != "learned" or learned is None or learned.needs_losses:
        return None
    if fusion.sums or len(members) < 2:
        return None
    options = fusion.weighting.history, fusion.weighting.prune
    _, measured = prompt.once(  # with the ensemble, so that no other has its id
        (decide, id(ensemble), tuple(members), *options),
        lambda: (ensemble, _by_text(learned, ensemble, prompt, members, fusion)),
    )
    return measured


def _by_text(
    learned: LearnedWeights, ensemble: Ensemble, prompt: Prompt, members: Sequence[str], fusion: FusionParams
) -> Measured:
    decision = _by_learned(learned, ensemble, members, text_of(prompt, fusion), None)
    pivot = heaviest(decision.weights, members) if ensemble.chooses_pivot else ensemble.pivot
    used: Literal["uniform", "learned"] = "learned" if decision.note is None else "uniform"
    threshold = fusion.weighting.prune / _siblings(ensemble, members)
    return _settled(decision, members, pivot, threshold, used, ())


def _settled(
    decision: Decision,
    members: Sequence[str],
    pivot: str,
    threshold: Floats | None,
    used: Literal["uniform", "fixed", Measure],
    notes: Iterable[str],
) -> Measured:
    """The weights of a decision, pruned at the threshold [M] where there is one; equal weights keep everybody."""
    weights, pruned = decision.weights, tuple[str, ...]()
    if threshold is not None and decision.note is None:
        weights, pruned = prune(weights, members, pivot, threshold)
    by_member = dict(zip(members, weights.tolist(), strict=True))
    report = WeightingReport(
        method=used,
        perplexity={},
        weights=by_member,
        pruned=pruned,
        tokens=0,
        scored={},
        kept=0,
        coinciding=0,
        notes=(*notes, decision.note) if decision.note else tuple(notes),
        features=decision.features,
        similarity=decision.similarity,
    )
    return Measured(pivot, by_member, report)


def _siblings(ensemble: Ensemble, members: Sequence[str]) -> Floats:
    """How many of the members are views of the same one for the request, [M]: a threshold is for them together."""
    one_of = _origins(ensemble, members)
    return np.array([float(one_of.count(name)) for name in one_of])


def _origins(ensemble: Ensemble, members: Sequence[str]) -> list[str]:
    """The members of the configuration that these are views of for the request, or themselves."""
    return [ensemble.models[name].view.of or name for name in members]


def text_of(prompt: Prompt, fusion: FusionParams) -> str:
    """The text that learned weights look at: all messages, or the last."""
    texts = prompt.texts if fusion.weighting.history == "all" else prompt.texts[-1:]
    return "\n".join(texts)


def heaviest(weights: Floats, members: Sequence[str]) -> str:
    """The member that weighs the most, the first of equal ones."""
    return members[int(weights.argmax())]


def prune(
    weights: Floats, members: Sequence[str], pivot: str, threshold: Floats | float
) -> tuple[Floats, tuple[str, ...]]:
    """Weights [M] of 0 for members at their threshold or below, the rest summing to 1; and who can be closed.

    The best one stays whatever the threshold. The pivot may lose its vote, but runs on: its tokens are emitted.
    """
    stays = weights > threshold
    stays[weights.argmax()] = True
    left = np.where(stays, weights, 0.0)
    closed = (name for name, stay in zip(members, stays, strict=True) if not stay and name != pivot)
    return left / left.sum(), tuple(closed)


def fused_loss(
    texts: Sequence[TextScores], view: View, members: Sequence[str], fusion: FusionParams, usual: Floats
) -> Callable[[Floats], float]:
    """The loss of the fusion that decoding uses (maps, filter, combination), by the members' weights [M].

    It is the mean negative log-probability of the pivot's next token, in nats, over positions where all members'
    tokens begin: the latest, as many as may be scored. `usual` [M] are the members' offsets.
    """
    answers = [_answers(texts, name, fusion.weighting.positions) for name in members]
    candidates = project(answers, [view.maps[name].rest for name in members], view.vocabulary_size)
    labels = np.concatenate([text.first[view.pivot] for text in texts])[-fusion.weighting.positions :]
    hits = candidates.tokens == labels[:, None]
    at, listed = hits.argmax(axis=1), hits.any(axis=1)
    pivot = members.index(view.pivot) if view.pivot in members else 0
    shares = shares_of(candidates.probabilities, pivot, view.mapped(members), fusion)
    rows = np.arange(len(labels))
    each = shares.probabilities
    # [P, M] both. A label counts relative to how well its member usually predicts.
    mass, label = each.sum(axis=2), np.where(listed[:, None], each[rows, :, at], 0.0) * np.exp(usual)

    def mixture_of_label(weights: Floats) -> Floats:  # it is linear: no need of the other candidates
        total: Floats = np.maximum((mass * weights).sum(axis=1), 1.0)
        return (label * weights).sum(axis=1) / total  # type: ignore[no-any-return]

    # [P, C, M], ready to be multiplied by weights: a search asks for the product with many of them.
    logs = np.ascontiguousarray(floored_logs(each).transpose(0, 2, 1)) if fusion.combine == "product" else None
    absent = (each == 0).all(axis=1)

    def product_of_label(weights: Floats) -> Floats:
        assert logs is not None
        fused = np.where(absent, -np.inf, np.matmul(logs, weights[:, :, None])[:, :, 0])
        scaled = np.exp(fused - fused.max(axis=1, keepdims=True))
        of_label: Floats = np.where(listed, scaled[rows, at] / scaled.sum(axis=1), 0.0) * np.exp(weights @ usual)
        return of_label

    of_label = mixture_of_label if fusion.combine == "mixture" else product_of_label

    def loss(weights: Floats) -> float:
        shared = effective_weights(np.broadcast_to(weights, mass.shape), shares.kept)
        return float(-np.log(np.maximum(of_label(shared), UNHEARD_OF)).mean())

    return loss


def _answers(texts: Sequence[TextScores], name: str, limit: int) -> tuple[Ids, LogProbs]:
    """A member's distributions where units begin."""
    ids, logprobs = zip(*(text.best[name] for text in texts), strict=True)
    return np.concatenate(ids)[-limit:], np.concatenate(logprobs)[-limit:]


def _best_alone(evidence: Evidence) -> Decision:
    """All weight on the member of the lowest loss."""
    alone = np.zeros(len(evidence.losses))
    alone[evidence.losses.argmin()] = 1.0
    return Decision(alone)


def _similar(evidence: Evidence) -> Decision:
    """PackLLM-sim."""
    return Decision(packllm_sim(evidence.losses, evidence.fusion.weighting.temperature))


def _optimal(evidence: Evidence) -> Decision:
    """PackLLM-opt, on the fusion that decoding uses."""
    loss = fused_loss(evidence.texts, evidence.view, evidence.members, evidence.fusion, evidence.offsets)
    return Decision(greedy_weights(evidence.losses, loss, grid=evidence.fusion.weighting.grid))


def _learned(evidence: Evidence) -> Decision:
    """What a model fitted on questions says of the prompt's text and of the members' losses on it."""
    learned = evidence.ensemble.learned
    if learned is None:
        return Decision(np.full(len(evidence.members), 1 / len(evidence.members)))
    losses = losses_of(evidence.texts, evidence.members)
    text = text_of(evidence.prompt, evidence.fusion)
    return _by_learned(learned, evidence.ensemble, evidence.members, text, losses)


def _by_learned(
    learned: LearnedWeights, ensemble: Ensemble, members: Sequence[str], text: str, losses: PromptLosses | None
) -> Decision:
    """The learned weights of members; those that are views of one for the request share its weight equally."""
    one_of = _origins(ensemble, members)
    known = list(dict.fromkeys(one_of))
    at = np.array([known.index(name) for name in one_of])
    if losses is not None:  # a member's loss is the mean over its views
        counts = np.bincount(at)
        losses = PromptLosses(*(np.bincount(at, each) / counts for each in (losses.whole, losses.last)))
    decision = learned.weigh(text, known, losses)
    return replace(decision, weights=decision.weights[at] / _siblings(ensemble, members))


# One function each; a new measure is one more, with its name in `fusion.options.Measure`.
WEIGHERS: dict[Measure, Callable[[Evidence], Decision]] = {
    "top1": _best_alone,
    "packllm-sim": _similar,
    "packllm-opt": _optimal,
    "learned": _learned,
}
