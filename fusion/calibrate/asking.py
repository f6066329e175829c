"""Asking: questions to an ensemble of this process, many at a time, with what the answers cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from alignment.text.boundaries import Indices, Located
from fusion.core import Prompt, Token
from fusion.ensemble import Ensemble
from fusion.loop.fuser import Fuser
from fusion.loop.listener import Listener, Submission, ask_all
from fusion.options import FusionParams, Mask, SamplingParams

AT_A_TIME = 32  # as many as a model takes by default; a pass over few rows costs about as much as one over many
QUESTION = "{prompt}"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer and its cost.

    Attributes:
        text: the answer; "" where there is none.
        tokens: tokens emitted.
        passes: member passes that these took.
        seconds: its share of the time that all questions asked together took.
        perplexity: of the prompt by member, where weights were measured on it.
        error: the reason why there is no answer; None where there is one.
    """

    text: str
    tokens: int
    passes: float
    seconds: float
    perplexity: dict[str, float] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """Form of the questions to a model; decoding is always greedy.

    Attributes:
        template: the plain text of a completion, in which the question takes the place of `QUESTION`; None asks
            in a chat, where every model has its own template.
        stop: texts that end an answer.
        max_tokens: the longest answer.
    """

    template: str | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int = 256

    def text(self, question: str) -> str:
        """A question as it is asked, but for the templates of chats."""
        return (self.template or QUESTION).replace(QUESTION, question)


def ask(fuser: Fuser, ensemble: Ensemble, fusion: FusionParams, prompts: Sequence[str], form: Form) -> list[Reply]:
    """Answers to all prompts, in their order. A prompt that cannot be asked gets a reply with the reason."""
    sampling = SamplingParams(max_tokens=form.max_tokens, temperature=0.0, stop=form.stop)

    def request(prompt: str) -> Submission:
        encoded = _encoded(ensemble, prompt, fusion, form)
        room = ensemble.max_new_tokens(encoded, ensemble.taking_part(fusion))
        return ensemble, encoded, replace(sampling, max_tokens=min(form.max_tokens, room)), fusion

    began = time.perf_counter()
    listeners = ask_all(fuser, request, prompts, AT_A_TIME)
    share = (time.perf_counter() - began) / max(1, len(prompts))
    return [_reply(listener, share) for listener in listeners]


def _reply(heard: Listener, seconds: float) -> Reply:
    if heard.end is None or heard.error is not None:
        return Reply("", 0, 0.0, seconds, {}, heard.error)
    passes = float(sum(len(round.weights) for round in heard.end.rounds)) or float(heard.tokens)
    perplexity = dict(heard.end.weighting.perplexity) if heard.end.weighting else {}
    return Reply(heard.text, heard.tokens, passes, seconds, perplexity)


def choose(
    fuser: Fuser, ensemble: Ensemble, fusion: FusionParams, prompt: str, choices: Sequence[str], form: Form
) -> Reply:
    """The likeliest of `choices` as what follows a prompt, per byte: multiple choice by log-likelihood.

    The prompt is plain text, whatever the form says of chats, and a space goes between it and the choice.
    """
    asked = form.text(prompt)
    places: list[Mapping[str, Located]] = []
    sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    # Under a mask most texts have no probability at all, whichever is the likelier.
    scored = replace(fusion, mask=Mask(off=True)) if fusion.sums else fusion

    def request(choice: str) -> Submission:
        encoded = ensemble.encode_text(f"{asked} {choice}", locate=True)
        places.append(encoded.located or {})
        return ensemble, encoded, sampling, scored

    began = time.perf_counter()
    listeners = ask_all(fuser, request, choices)
    failed = [listener.error for listener in listeners if listener.error is not None]
    seconds = time.perf_counter() - began
    if failed:
        return Reply("", 0, 0.0, seconds, {}, failed[0])
    scores = []
    for one, located, text in zip(listeners, places, choices, strict=True):
        here = located[one.pivot or ensemble.pivot]
        if (span := here.texts[0]) is None:
            return Reply("", 0, 0.0, seconds, {}, "The places of its tokens in the text are not known.")
        scores.append(_after(one.prompt, here.ends, span[0] + len(asked)) / max(1, len(text.encode())))
    tokens = sum(len(listener.prompt) for listener in listeners)
    best = choices[max(range(len(choices)), key=scores.__getitem__)]
    return Reply(best, tokens, tokens * len(ensemble.taking_part(fusion)), seconds)


def _after(tokens: Sequence[Token], ends: Indices, asked: int) -> float:
    """The log-probability of the tokens that end, by `ends` [n], after the first `asked` characters."""
    logprobs = np.array([token.chosen.logprob for token in tokens])
    return float(np.nansum(logprobs[ends[: len(logprobs)] > asked]))  # the first one has none


def _encoded(ensemble: Ensemble, prompt: str, fusion: FusionParams, form: Form) -> Prompt:
    locate = ensemble.scores(fusion)
    if form.template is None:
        messages = [{"role": "user", "content": prompt}]
        return ensemble.encode_chat(messages, locate=locate, place=fusion.context_place)
    return ensemble.encode_text(form.text(prompt), locate=locate)
