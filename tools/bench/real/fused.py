"""Bits per byte of the fusion, as the server's `echo` counts them, from scores that are there already."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignment.methods.map_cache import MapCache
from alignment.methods.origin import Parameters
from alignment.methods.registry import Alignment
from alignment.vocab_map import VocabMap
from fusion.assembly.ensembles import build_ensemble
from fusion.ensemble import Ensemble, Model
from fusion.options import FusionParams
from fusion.prompt.echo import Echo
from fusion.prompt.scoring import PrefixScores, PromptScoring
from fusion.prompt.weighing import measure
from tools.bench.real.scores import Scored, joint_prompt

FLOOR = -20.0  # nats that a token counts as at least


@dataclass(frozen=True)
class Bits:
    """Bits per byte, and how many tokens were impossible."""

    per_byte: float
    impossible: int


def ensemble_of(scored: dict[str, Scored], pivot: str, method: str, cache: MapCache) -> Ensemble:
    """The models around a pivot, by one method of alignment (see `tools.bench.real`); costly maps are kept."""
    name, _, temperature = method.partition("@")
    parameters = Parameters(temperature=float(temperature) if temperature else None)

    def align(source: Model, target: Model) -> VocabMap:
        alignment = Alignment(scored[source.name].vocabulary, scored[target.name].vocabulary, name, parameters)
        if alignment.kept is None:
            return alignment.learn()
        return alignment.complete(cache.find_or_learn(alignment.kept.origin("bench"), alignment.kept.learn))

    return build_ensemble("real", {name: one.model(name) for name, one in scored.items()}, pivot, align=align)


def bits_of(ensemble: Ensemble, scored: dict[str, Scored], fusion: FusionParams) -> Bits:
    """Of all texts, under these options."""
    members, pivot = list(scored), ensemble.pivot
    nats, impossible = 0.0, 0
    for index in range(len(scored[pivot].texts)):
        prompt = joint_prompt(scored, index)
        answers = {name: one.prompt(index) for name, one in scored.items()}
        weights = fusion.weights or dict.fromkeys(members, 1 / len(members))
        if fusion.weighting.method != "given":
            scoring = PromptScoring.of(prompt, members, fusion.weighting, PrefixScores(), pivot=pivot)
            weights = measure(scoring.collect(answers), ensemble, members, fusion, weights, pivot, prompt).weights
        tokens = Echo(prompt, members, ensemble.first).tokens(answers, weights, fusion, 0)
        logprobs = np.array([token.chosen.logprob for token in tokens[1:]])
        nats -= float(np.maximum(logprobs, FLOOR).sum())
        impossible += int((logprobs < -1000).sum())
    size = sum(len(text.encode()) for text in scored[pivot].texts)
    return Bits(nats / size / float(np.log(2)), impossible)
