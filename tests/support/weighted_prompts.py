"""Prompts whose weights are measured, and whole distributions at their positions."""

from __future__ import annotations

import numpy as np

from fusion.options import FusionParams, Weighting
from fusion.step import LEAST_LOST

QUESTION = "What is 12 + 7? Say this in Esperanto, please: the quiet farmer ran behind the big forest."


TALK = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": "It is 19, and la kvieta kamparano kuris malantaŭ la granda arbaro."},
    {"role": "user", "content": "Now turn the data into a short text, and tell what comes next after January."},
]


def weighted(method, **options):
    return FusionParams(weighting=Weighting(method, **{"positions": 100, **options}))


def chat(ensemble, messages=None):
    return ensemble.encode_chat(messages or TALK[:1], locate=True)


def dense(ensemble, prompt, name, length):
    """A member's distribution after `length` tokens in the pivot's vocabulary, by surfaces."""
    model, target = ensemble.models[name], ensemble.tokenizer
    p = np.exp(model.member.distribution(prompt.ids[name][:length]).astype(np.float64))
    if name == ensemble.pivot:
        projected = p[: target.vocabulary_size].copy()
        projected[[i for i in target.special_ids if i not in ensemble.stop_ids]] = 0
        return projected
    projected = np.zeros(target.vocabulary_size)
    byte_ids = {i for i in target.byte_ids if i is not None}
    order = sorted(range(target.vocabulary_size), key=lambda i: (i in byte_ids, i), reverse=True)
    ids = {target.surfaces[i]: i for i in order if target.surfaces[i] is not None}
    for token, surface in enumerate(model.tokenizer.surfaces):
        if token in model.stop_ids:
            projected[ensemble.models[ensemble.pivot].stop_ids[0]] += p[token]
        elif surface in ids:
            projected[ids[surface]] += p[token]
    return projected


def completed(row, pivot):
    """A member's distribution in the pivot's vocabulary with what it lost, distributed as the pivot's is."""
    return row + max(1 - row.sum(), LEAST_LOST) * pivot


def report_of(running, prompt, fusion, **sampling):
    return running.submit(prompt, fusion, **{"max_tokens": 2, **sampling}).wait().last.weighting
