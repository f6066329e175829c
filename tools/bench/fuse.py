"""Projection and combination of one round, for a batch of sequences over large vocabularies."""

from __future__ import annotations

import statistics
import time

import numpy as np

from alignment.vocab_map import VocabMap
from fusion.step import effective_weights, faithful, mixture, project

VOCABULARIES = (32_000, 131_072, 151_851)
PIVOT = 1
SEQUENCES, K, ENTRIES = 16, 320, 10


def random_map(rows: int, rng: np.random.Generator) -> VocabMap:
    """One to ten entries in every row, as learned maps have."""
    counts = rng.integers(1, ENTRIES + 1, size=rows)
    ids = rng.integers(VOCABULARIES[PIVOT], size=(rows, ENTRIES)).astype(np.int32)
    weights = rng.random((rows, ENTRIES)).astype(np.float32)
    padding = np.arange(ENTRIES) >= counts[:, None]
    ids[padding], weights[padding] = -1, 0
    return VocabMap(ids, weights, VOCABULARIES[PIVOT])


def run(repeats: int = 50) -> dict[str, float]:
    """Median milliseconds of each stage."""
    rng = np.random.default_rng(0)
    maps = [None if i == PIVOT else random_map(size, rng) for i, size in enumerate(VOCABULARIES)]
    answers = []
    for size in VOCABULARIES:
        ids = np.stack([rng.permutation(size)[:K] for _ in range(SEQUENCES)]).astype(np.int32)
        answers.append((ids, np.log(rng.dirichlet(np.ones(K), size=SEQUENCES)).astype(np.float32)))
    weights = np.full((SEQUENCES, len(maps)), 1 / len(maps))
    spent: dict[str, list[float]] = {"project": [], "filter": [], "combine": []}
    for _ in range(repeats):
        times = [time.perf_counter()]
        candidates = project(answers, maps, VOCABULARIES[PIVOT])
        times.append(time.perf_counter())
        kept = faithful(candidates.probabilities, 20)
        times.append(time.perf_counter())
        mixture(candidates.probabilities, effective_weights(weights, kept))
        times.append(time.perf_counter())
        for stage, before, after in zip(spent, times[:-1], times[1:], strict=True):
            spent[stage].append(1e3 * (after - before))
    medians = {f"{stage}_ms": statistics.median(values) for stage, values in spent.items()}
    return medians | {"total_ms": sum(medians.values())}
