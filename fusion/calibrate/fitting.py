"""Fitting: learned weights from scored references, as flexible as cross-validation allows.

The weights of a question are softmax(scores / temperature), the scores linear in its features. They are fitted to
the fused log-likelihood of the references, with a penalty on the coefficients, whose limit is equal weights. Equal
weights and the best member alone are candidates, and a more flexible one has to beat a simpler one by more than
the standard error of the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array

from fusion.calibrate.likelihood import Likelihood, by_text, by_token
from fusion.calibrate.references import Scored
from fusion.core import Floats
from fusion.ensemble import Ensemble
from fusion.learned.features import BUCKETS, bucket, ngrams, numbers, numeric_features, words
from fusion.learned.vocabulary import Prototypes, Seen, Vocabulary, similarity
from fusion.learned.weights import (
    ALONE,
    CONSTANT,
    LOSSES,
    TEXT,
    UNIFORM,
    About,
    Fingerprint,
    LearnedWeights,
    standardised,
)
from fusion.options import Combine

FEWEST = 12  # questions to learn anything from
PENALTIES = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
TEMPERATURES = (1.0, 0.5, 0.25)
_FOLDS = 5
_LEAST_GAIN = 2e-3  # nats per token that more flexible weights have to gain at least
_LARGEST_VOCABULARY = 8192
_PROTOTYPES = 256
_UNLIKE = 0.8  # of the likeness that nearly all questions have to another one
_NONE = -1e3  # a score that leaves no weight


@dataclass(frozen=True, slots=True)
class Spec:
    """A candidate: its kind, the penalty on its coefficients, and the temperature of its softmax."""

    kind: str
    penalty: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate with the log-likelihoods [Q] of questions that it was not fitted on, in nats per token."""

    spec: Spec
    held_out: Floats


@dataclass(frozen=True, slots=True)
class Fit:
    """Learned weights and how they came about.

    Attributes:
        weights: the model.
        tried: the best candidate of each kind, as far as there were questions enough.
        of_questions: weights [Q, M] of the questions, each fitted without it.
    """

    weights: LearnedWeights
    tried: tuple[Tried, ...]
    of_questions: Floats


@dataclass(frozen=True, slots=True)
class Design:
    """The features of Q questions: text [Q, F] and standardised numbers [Q, K]; folds [Q] for cross-validation."""

    vocabulary: Vocabulary
    text: csr_array
    numbers: Floats
    usual: Floats
    seen: list[Seen]
    folds: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Coefficients:
    """What is fitted: bias [M], text [F, M], number [K, M]."""

    bias: Floats
    text: Floats
    number: Floats

    def weights(self, design: Design, temperature: float) -> Floats:
        """The weights [Q, M] of all questions."""
        scores = (self.bias + design.text @ self.text + design.numbers @ self.number) / temperature
        shares: Floats = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        return shares


def fit(scored: Sequence[Scored], ensemble: Ensemble, fingerprints: Mapping[str, Fingerprint]) -> Fit:
    """Fit weights to what the members made of the references. Deterministic; no member runs.

    Args:
        scored: the questions; from too few of them nothing is learned, and the notes say so.
        fingerprints: of the members, in the ensemble's order.
    """
    members = list(ensemble.models)
    design = design_of(scored, members)
    if len(scored) < FEWEST:
        note = f"{len(scored)} questions are too few to learn weights from, {FEWEST} are needed: equal weights."
        equal = np.full((len(scored), len(members)), 1 / len(members))
        nothing = _zeros(design, len(members))
        return Fit(_model(Spec(UNIFORM), nothing, design, scored, fingerprints, "mixture", (note,)), (), equal)
    likelihood = by_text(scored)
    tried = cross_validate(design, likelihood, len(members))
    chosen = select(tried)
    held_out = out_of_fold(chosen.spec, design, likelihood, len(members))
    # Weights are fitted to stretches of text, which every member spells in tokens of its own. By the pivot's
    # tokens one whose tokens are shorter seems wrong wherever the pivot's next token is the whole word.
    mixture, product = by_token(scored)
    gain = product(held_out)[0] - mixture(held_out)[0]
    combine: Combine = "product" if gain.mean() > max(_error(gain), _LEAST_GAIN) else "mixture"
    coefficients = fitted(chosen.spec, design, likelihood, len(members), np.ones(len(scored), np.bool_))
    note = _note(chosen, tried, coefficients, members)
    model = _model(chosen.spec, coefficients, design, scored, fingerprints, combine, (note,))
    return Fit(model, best_of_kinds(tried), held_out)


def design_of(scored: Sequence[Scored], members: Sequence[str]) -> Design:
    """The features of questions, with the vocabulary that their texts make."""
    found = [words(one.text) for one in scored]
    each = [np.unique([bucket(ngram) for ngram in ngrams(text)]) for text in found]
    times = np.bincount(np.concatenate([*each, np.empty(0, np.int64)]).astype(np.int64), minlength=BUCKETS)
    known = np.sort(np.argsort(-times, kind="stable")[: min(_LARGEST_VOCABULARY, int((times > 0).sum()))])
    rarity = np.where(times[known] > 1, np.log((1 + len(scored)) / np.maximum(times[known], 1)), 0.0)
    vocabulary = Vocabulary(known.astype(np.int32), rarity.astype(np.float32))
    seen = [vocabulary.look_up(text) for text in found]
    starts = np.cumsum([0, *(len(one.rows) for one in seen)])
    rows = np.concatenate([*(one.rows for one in seen), np.empty(0, np.int64)])
    values = np.concatenate([*(one.shares for one in seen), np.empty(0)])
    text = csr_array((values, rows, starts), shape=(len(scored), len(known)))
    measured = np.array(
        [numbers(len(text), one.losses, len(members)) for text, one in zip(found, scored, strict=True)]
    ).reshape(len(scored), numeric_features(len(members)))
    deviations = measured.std(axis=0) if len(scored) else np.ones(measured.shape[1])
    means = measured.mean(axis=0) if len(scored) else np.zeros(measured.shape[1])
    usual = np.stack([means, np.where(deviations > 1e-6, deviations, 1.0)])
    return Design(vocabulary, text, standardised(measured, usual), usual, seen, _folds(scored))


def _folds(scored: Sequence[Scored]) -> NDArray[np.int64]:
    """A fold for each question: they are dealt out in turn, task after task."""
    tasks = list(dict.fromkeys(one.question.task for one in scored))
    order = np.argsort([tasks.index(one.question.task) for one in scored], kind="stable")
    folds = np.empty(len(scored), np.int64)
    folds[order] = np.arange(len(scored)) % _FOLDS
    return folds


def cross_validate(design: Design, likelihood: Likelihood, members: int) -> list[Tried]:
    """All candidates on questions that they were not fitted on, the simplest first."""
    specs = [Spec(UNIFORM), Spec(ALONE), Spec(CONSTANT, PENALTIES[-1])]
    specs += [Spec(kind, penalty) for kind in (TEXT, LOSSES) for penalty in PENALTIES]
    tried = []
    for spec in specs:
        parts = _by_fold(spec, design, likelihood, members)
        for temperature in TEMPERATURES if spec.kind in (TEXT, LOSSES) else (1.0,):
            own = replace(spec, temperature=temperature)
            tried.append(Tried(own, likelihood(_held_out(parts, design, temperature))[0]))
    return tried


def out_of_fold(spec: Spec, design: Design, likelihood: Likelihood, members: int) -> Floats:
    """The weights [Q, M] of the questions, each fitted without those of its fold."""
    return _held_out(_by_fold(spec, design, likelihood, members), design, spec.temperature)


def _by_fold(spec: Spec, design: Design, likelihood: Likelihood, members: int) -> dict[int, Coefficients]:
    return {
        int(fold): fitted(spec, design, likelihood, members, design.folds != fold)
        for fold in np.unique(design.folds)
    }


def _held_out(parts: Mapping[int, Coefficients], design: Design, temperature: float) -> Floats:
    by_fold = {fold: one.weights(design, temperature) for fold, one in parts.items()}
    return np.array([by_fold[int(fold)][index] for index, fold in enumerate(design.folds)])


def fitted(
    spec: Spec, design: Design, likelihood: Likelihood, members: int, counted: NDArray[np.bool_]
) -> Coefficients:
    """The coefficients of a candidate, fitted to the questions that count [Q]."""
    features, numeric = design.text.shape[1], design.numbers.shape[1]
    nothing = _zeros(design, members)
    if spec.kind == UNIFORM:
        return nothing
    if spec.kind == ALONE:
        alone = [likelihood(np.tile(row, (len(counted), 1)))[0][counted].mean() for row in np.eye(members)]
        return replace(nothing, bias=np.where(np.arange(members) == int(np.argmax(alone)), 0.0, _NONE))
    # Without the members' losses the length is the only number.
    used = {CONSTANT: 0, TEXT: 1, LOSSES: numeric}[spec.kind]
    texts = design.text if spec.kind != CONSTANT else csr_array(design.text.shape)
    measured = np.where(np.arange(numeric) < used, design.numbers, 0.0)
    share = counted / max(1, int(counted.sum()))

    def split(flat: Floats) -> Coefficients:
        parts = flat.reshape(-1, members)
        return Coefficients(parts[0], parts[1 : features + 1], parts[features + 1 :])

    masked = replace(design, text=texts, numbers=measured)

    def loss(flat: Floats) -> tuple[float, Floats]:
        own = split(flat)
        weights = own.weights(masked, 1.0)
        values, slopes = likelihood(weights)
        inner = weights * (slopes - (weights * slopes).sum(axis=1, keepdims=True)) * share[:, None]
        gradient = np.concatenate([inner.sum(axis=0)[None], texts.T @ inner, measured.T @ inner]).ravel()
        penalty = spec.penalty * float(flat @ flat)
        return penalty - float(values @ share), 2 * spec.penalty * flat - gradient

    start = np.zeros((1 + features + numeric) * members)
    return split(minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x)


def _zeros(design: Design, members: int) -> Coefficients:
    texts, numeric = design.text.shape[1], design.numbers.shape[1]
    return Coefficients(np.zeros(members), np.zeros((texts, members)), np.zeros((numeric, members)))


def best_of_kinds(tried: Sequence[Tried]) -> tuple[Tried, ...]:
    """The best candidate of each kind, the simplest kind first."""
    best: dict[str, Tried] = {}
    for one in tried:
        if one.spec.kind not in best or one.held_out.mean() > best[one.spec.kind].held_out.mean():
            best[one.spec.kind] = one
    return tuple(best.values())


def select(tried: Sequence[Tried]) -> Tried:
    """The simplest candidate that no more flexible one beats by more than the standard error of the difference."""
    chosen, *others = best_of_kinds(tried)
    for other in others:
        gain = other.held_out - chosen.held_out
        if gain.mean() > max(_error(gain), _LEAST_GAIN):
            chosen = other
    return chosen


def _error(values: Floats) -> float:
    """The standard error of a mean."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("inf")


def _note(chosen: Tried, tried: Sequence[Tried], coefficients: Coefficients, members: Sequence[str]) -> str:
    best = best_of_kinds(tried)
    gained = float((chosen.held_out - best[0].held_out).mean())
    if chosen.spec.kind == UNIFORM:
        most = max(float((one.held_out - best[0].held_out).mean()) for one in best[1:])
        return (
            f"No weights predict the references better than equal ones by more than chance (at best {most:+.3f} "
            "nats per token): equal weights."
        )
    if chosen.spec.kind == ALONE:
        name = members[int(coefficients.bias.argmax())]
        over = f"{gained:+.3f} nats per token over equal ones"
        return f"{name} alone predicts the references as well as any weights ({over})."
    return f"The weights predict the references by {gained:.3f} nats per token better than equal ones."


def _model(
    spec: Spec,
    coefficients: Coefficients,
    design: Design,
    scored: Sequence[Scored],
    fingerprints: Mapping[str, Fingerprint],
    combine: Combine,
    notes: tuple[str, ...],
) -> LearnedWeights:
    tasks = tuple(dict.fromkeys(one.question.task for one in scored))
    if len(tasks) == 1 and spec.kind != UNIFORM:
        notes += (f"All questions are of one task, {tasks[0]}: other prompts get equal weights.",)
    measured = [one.usual for one in scored if one.losses is not None]
    usual = np.mean(measured, axis=0).round(4) if measured else np.empty((0, 0))
    offsets = {
        name: dict(zip(fingerprints, row.tolist(), strict=True))
        for name, row in zip(fingerprints, usual, strict=False)
    }
    about = About(
        members=dict(fingerprints),
        kind=spec.kind,
        combine=combine,
        temperature=spec.temperature,
        similar=_similar(design),
        offsets=offsets,
        questions=len(scored),
        tasks=tasks,
        notes=notes,
    )
    return LearnedWeights(
        about,
        design.vocabulary,
        coefficients.bias,
        coefficients.text.astype(np.float32),
        coefficients.number,
        design.usual,
        Prototypes.of([design.seen[index] for index in _kept(design)]),
    )


def _kept(design: Design) -> list[int]:
    """The questions that prompts are compared with."""
    last = len(design.seen) - 1
    return np.unique(np.linspace(0, last, _PROTOTYPES).round().astype(np.int64)).tolist() if last >= 0 else []


def _similar(design: Design) -> float:
    """The likeness from which on a prompt counts as familiar: a little under what nearly every question has.

    It is compared as a prompt is, with the prototypes, of which it is none itself.
    """
    if len(design.seen) < 2:
        return 0.0
    kept = _kept(design)
    prototypes = Prototypes.of([design.seen[index] for index in kept])
    likeness = []
    for index, one in enumerate(design.seen):
        cosines = prototypes.cosines(one, len(design.vocabulary.buckets))
        likeness.append(similarity(np.delete(cosines, [at for at, other in enumerate(kept) if other == index])))
    return float(_UNLIKE * np.quantile(likeness, 0.02))
