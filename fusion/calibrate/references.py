"""References: right answers as the members predict them, scored once, so that weights can be tried on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignment.text.boundaries import Indices, shared_boundaries
from fusion.calibrate.asking import AT_A_TIME, Form
from fusion.core import Floats, Prompt, TextScores
from fusion.ensemble import Ensemble
from fusion.learned.features import PromptLosses, losses_of
from fusion.loop.fuser import Fuser
from fusion.loop.listener import Submission, ask_all
from fusion.options import FusionParams, SamplingParams, Weighting
from fusion.prompt.scoring import PrefixScores, choose
from fusion.step import Bools, Candidates, floored_logs, project, shares_of

_CANDIDATES = 64  # of a product's, the best that count
_UNLISTED = 1e-8  # the probability of a token that a member does not list, where tokens are compared

POSITIONS = 512  # tokens of the pivot that are scored at most, prompt and reference together
MEASURED = 24  # of these, tokens of the prompt that count as its perplexity: as many as when serving


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with a right answer."""

    prompt: str
    reference: str
    task: str


@dataclass(frozen=True, slots=True)
class Rows:
    """The members' rows at P positions, as far as a combination needs them: whole ones would take too much memory.

    Attributes:
        given: [P, M], what the members give to the token that did come.
        logs: [P, C, M] float32, their log-probabilities of the best candidates.
        labels: [P], which of these did come.
    """

    given: Floats
    logs: NDArray[np.float32]
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, candidates: Candidates, tokens: Indices, pivot: int, mapped: Bools, fusion: FusionParams) -> Rows:
        """From the members' distributions [P, M, C] and the pivot's tokens [P] that did come.

        `pivot` is the pivot's place among the members, and `mapped` [M] says who has another vocabulary. Positions
        whose token nobody lists are left out, unless there are no others.
        """
        shares = shares_of(candidates.probabilities, pivot, mapped, fusion).probabilities  # [P, M, C]
        hits = candidates.tokens == tokens[:, None]
        rows = np.flatnonzero(hits.any(axis=1))
        if not len(rows):
            rows, hits = np.zeros(1, np.int64), np.ones_like(hits)
        shares, at = shares[rows], hits[rows].argmax(axis=1)
        right = shares[np.arange(len(rows)), :, at] / np.maximum(shares.sum(axis=2), 1.0)
        kept = np.argsort(-shares.mean(axis=1), axis=1, kind="stable")[:, :_CANDIDATES]
        kept[:, -1] = np.where((kept == at[:, None]).any(axis=1), kept[:, -1], at)
        chosen = np.take_along_axis(floored_logs(shares), kept[:, None], axis=2)
        labels = (kept == at[:, None]).argmax(axis=1)
        return cls(np.maximum(right, _UNLISTED), chosen.transpose(0, 2, 1).astype(np.float32), labels)


@dataclass(frozen=True, slots=True)
class Scored:
    """A question whose reference all members predicted.

    Attributes:
        question: the question.
        text: the prompt as it was asked.
        losses: of the members on the prompt; None where it has too little text.
        usual: [M, M], these losses of all members (columns) per token of each (rows) that may be the pivot.
        units: [U, M] float64, the probability of the text between two boundaries that all members share.
        rows: what the members expected of the pivot's tokens where such a text begins.
    """

    question: Question
    text: str
    losses: PromptLosses | None
    usual: Floats
    units: Floats
    rows: Rows


def score_references(
    fuser: Fuser, ensemble: Ensemble, questions: Sequence[Question], form: Form
) -> tuple[list[Scored], list[str]]:
    """The questions whose references could be scored, and for each of the others a sentence."""
    members = list(ensemble.models)
    weighting = Weighting("packllm-opt", positions=POSITIONS, spread="last", grid=2)
    fusion = FusionParams(weighting=weighting, unmapped=ensemble.defaults.unmapped, report=True)
    sampling = SamplingParams(max_tokens=1, temperature=0.0)
    prompts: dict[Question, Prompt] = {}

    def request(question: Question) -> Submission:
        prompts[question] = _encoded(ensemble, question, form)
        return ensemble, prompts[question], sampling, fusion

    memory, fuser.prefixes = fuser.prefixes, PrefixScores(0)
    listeners = ask_all(fuser, request, questions, AT_A_TIME)
    fuser.prefixes = memory
    scored, failed = [], []
    for question, listener in zip(questions, listeners, strict=True):
        if listener.error is not None:
            failed.append(listener.error)
            continue
        assert listener.end is not None
        one = _read(question, prompts[question], listener.end.scores, ensemble, members, form)
        if one is None:
            failed.append("No member, or not every one, can score the reference.")
        else:
            scored.append(one)
    return scored, failed


def _encoded(ensemble: Ensemble, question: Question, form: Form) -> Prompt:
    text = form.text(question.prompt)
    if form.template is not None:
        answer = question.reference.rstrip()  # one that a member gave begins as its tokens do
        gap = "" if answer[:1].isspace() else " "
        return ensemble.encode_text(f"{text.rstrip()}{gap}{answer}", locate=True)
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": question.reference.strip()}]
    return ensemble.encode_chat(
        messages,
        add_generation_prompt=False,
        continue_final_message=True,
        locate=True,
        place=ensemble.defaults.context_place,
    )


def _read(
    question: Question,
    prompt: Prompt,
    texts: Sequence[TextScores],
    ensemble: Ensemble,
    members: Sequence[str],
    form: Form,
) -> Scored | None:
    """What was scored, divided into prompt and reference; None where a member finds the reference impossible."""
    assert prompt.located is not None
    view = ensemble.first
    places = _places(prompt, members)
    if len(places) != len(texts) or not texts:
        return None
    text = form.text(question.prompt)
    if form.template is None:
        if len(texts) < 2:
            return None
        before, after = texts[:-1], texts[-1]
    else:
        lead = len(text) - len(text.lstrip())
        whole, begins = texts[-1], len(text.rstrip()) - lead
        scored = places[-1][:-1][len(places[-1]) - 1 - len(whole.first[view.pivot]) :]
        at = int(np.searchsorted(scored, begins))
        before, after = [_part(whole, slice(0, at))], _part(whole, slice(at, None))
    nats = np.stack([after.text[name] for name in members], axis=1)
    if not len(nats) or not np.isfinite(nats).all():
        return None
    measured = [one for one in (_thinned(one, view.pivot) for one in before) if len(one.nats[view.pivot])]
    losses = losses_of(measured, members)
    usual = np.zeros((len(members), len(members)))
    if losses is not None:
        tokens = np.array([sum(int(one.tokens[name].sum()) for one in measured) for name in members])
        usual = losses.whole * tokens[0] / np.maximum(tokens, 1)[:, None]
    candidates = project(
        [after.best[name] for name in members], [view.maps[name].rest for name in members], view.vocabulary_size
    )
    came = after.first[view.pivot].astype(np.int64)
    rows = Rows.of(candidates, came, list(members).index(view.pivot), view.mapped(members), ensemble.defaults)
    return Scored(question, text, losses, usual, np.exp(-nats), rows)


def _places(prompt: Prompt, members: Sequence[str]) -> list[Indices]:
    """By text that has a unit, the places of the shared boundaries in characters, [B]."""
    assert prompt.located is not None
    located = {name: prompt.located[name] for name in members}
    found = []
    for text in range(len(located[members[0]].texts)):
        tokens = shared_boundaries(located, text)[members[0]]
        if len(tokens) < 2:
            continue
        places, before = located[members[0]].boundaries(text)
        found.append(places[np.isin(before, tokens)])
    return found


def _part(text: TextScores, units: slice | Indices) -> TextScores:
    return TextScores(
        {name: nats[units] for name, nats in text.nats.items()},
        {name: tokens[units] for name, tokens in text.tokens.items()},
        {name: first[units] for name, first in text.first.items()},
        {name: (ids[units], logprobs[units]) for name, (ids, logprobs) in text.best.items()},
        {name: nats[units] for name, nats in text.text.items()},
    )


def _thinned(text: TextScores, pivot: str) -> TextScores:
    """As much of a prompt as is scored when serving."""
    return _part(text, choose(text.tokens[pivot], MEASURED, "evenly"))
