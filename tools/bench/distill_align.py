"""Aligning two tokenizations of one text: `align_sequences` against the plain loops it replaces.

Prints one JSON line with an entry for each length. `ratio` is the plain time over ours, on the same strings and
with equal results.
"""

from __future__ import annotations

import json
import time

import numpy as np
from rapidfuzz.distance import Levenshtein

from fusion.distill.token_alignment import align_sequences

LENGTHS = (256, 1024, 2048)
LARGEST = 10**9


def plain(pivot: list[str], source: list[str]) -> list[list[int]]:
    """Dynamic time warping cell by cell, one Levenshtein distance each, as the papers' programs do it."""
    total = [[LARGEST] * (len(source) + 1) for _ in range(len(pivot) + 1)]
    total[0][0] = 0
    for i, own in enumerate(pivot, 1):
        for j, other in enumerate(source, 1):
            before = min(total[i - 1][j - 1], total[i - 1][j], total[i][j - 1])
            total[i][j] = Levenshtein.distance(own, other) + before
    i, j = len(pivot), len(source)
    path: list[list[int]] = [[] for _ in pivot]
    while i and j:
        path[i - 1].insert(0, j - 1)
        steps = ((i - 1, j - 1), (i - 1, j), (i, j - 1))
        i, j = min(steps, key=lambda at: total[at[0]][at[1]])
    return path


def cut(text: str, rng: np.random.Generator, tokens: int) -> list[str]:
    """The text in `tokens` pieces."""
    ends = np.sort(rng.choice(np.arange(1, len(text)), size=tokens - 1, replace=False))
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]


def run(length: int) -> dict[str, float]:
    """Seconds of both for a text of `length` pivot tokens and a tenth more source tokens."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("etaoinshrdlu"), size=n)) for n in rng.integers(1, 9, size=2000)]
    text = " ".join(rng.choice(words, size=length * 4 // 5))
    pivot, source = cut(text, rng, length), cut(text, rng, length * 11 // 10)
    ours = []
    for _ in range(5):
        start = time.perf_counter()
        aligned = align_sequences(pivot, source)
        ours.append(time.perf_counter() - start)
    start = time.perf_counter()
    expected = plain(pivot, source)
    spent = time.perf_counter() - start
    if aligned != expected:
        raise AssertionError("the two disagree")
    return {
        "pivot_tokens": len(pivot),
        "source_tokens": len(source),
        "seconds": round(min(ours), 4),
        "plain_seconds": round(spent, 3),
        "ratio": round(spent / min(ours), 1),
    }


if __name__ == "__main__":
    print(json.dumps({"distill_align": [run(length) for length in LENGTHS]}))
