"""Learning a vocabulary map of 32k x 131k tokens at width 1024, against the matrix products it cannot avoid.

The vocabularies are those of Llama 2 and Mistral's Tekken, so that the anchors are as many and as spread as real
ones; where they are not at hand, the sizes are the same and the anchors invented. The embeddings are random with
planted structure: the target's are the source's, turned, with a tenth of noise; tokens without an anchor have a
counterpart that only the embeddings know of.

The floor is the product of all mapped rows and the two products that map them, in float32 with the same
threads. The former is measured on every eighth block while the map is being learned, between its blocks, because
other work on the machine comes and goes; that time is taken off the map's.
"""

from __future__ import annotations

import multiprocessing
import re
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignment.eva import learn_map
from alignment.learning.anchors import anchors_of
from alignment.text.tokenizer import Tokenizer
from alignment.vocab_map import VocabMap

TOKENIZERS = Path(__file__).resolve().parents[3] / "shared" / "tokenizers"
SOURCE, TARGET = "llama-2", "mistral-tekken"
SIZES = (32_000, 131_072)
WIDTH = 1024
NOISE = 0.1
BLOCK = 1024


def run() -> dict[str, Any]:
    """Measure in a process of its own, whose peak of memory is that of this benchmark."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure).result()


def measure(sizes: tuple[int, int] = SIZES, width: int = WIDTH) -> dict[str, Any]:
    """Learn one map on the CPU, and on a GPU where there is one."""
    rng = np.random.default_rng(0)
    vocabularies, pairs = real_pairs(sizes) or ("invented", invented_pairs(sizes, rng))
    source, target, hidden = planted(pairs, sizes, width, rng)
    floor = Floor(sizes, width)
    start = time.perf_counter()
    learned = learn_map(source, target, pairs, on_progress=floor.measure_now_and_then)
    seconds = time.perf_counter() - start - floor.spent
    floor_seconds = floor.total()
    result = {
        "vocabularies": vocabularies,
        "sizes": sizes,
        "width": width,
        "anchors": len(pairs),
        "seconds": seconds,
        "floor_seconds": floor_seconds,
        "ratio": seconds / floor_seconds,
        "peak_memory_gib": peak_memory_gib(),
        "noise": NOISE,
        "hidden_counterparts": len(hidden),
        "hidden_counterparts_found": found(learned, hidden),
        "anchors_found": found(learned, pairs),
        "coverage": learned.coverage,
    }
    if torch.cuda.is_available():
        start = time.perf_counter()
        on_gpu = learn_map(source, target, pairs, device="cuda")
        result["cuda_seconds"] = time.perf_counter() - start
        result["cuda_hidden_counterparts_found"] = found(on_gpu, hidden)
    return result


def real_pairs(sizes: tuple[int, int]) -> tuple[str, np.ndarray] | None:
    """The anchors between the real tokenizers, where they are here and of these sizes."""
    if not (TOKENIZERS / SOURCE).is_dir() or not (TOKENIZERS / TARGET).is_dir():
        return None
    source, target = (Tokenizer.load(str(TOKENIZERS / name)) for name in (SOURCE, TARGET))
    if (source.vocabulary_size, target.vocabulary_size) != sizes:
        return None
    return f"{SOURCE} into {TARGET}", anchors_of(source, target)


def invented_pairs(sizes: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Half of the source's tokens, each with another target token."""
    count = sizes[0] // 2
    return np.stack([rng.permutation(sizes[0])[:count], rng.permutation(sizes[1])[:count]], axis=1)


def planted(
    pairs: np.ndarray, sizes: tuple[int, int], width: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two tables [V, width] float32, and pairs [H, 2] of the tokens that correspond without being anchors."""
    free = [np.setdiff1d(np.arange(size), ids) for size, ids in zip(sizes, pairs.T, strict=True)]
    count = min(map(len, free))
    hidden = np.stack([rng.choice(ids, count, replace=False) for ids in free], axis=1)
    source = rng.standard_normal((sizes[0], width), np.float32)
    target = rng.standard_normal((sizes[1], width), np.float32)
    turn = np.linalg.qr(rng.standard_normal((width, width)))[0].astype(np.float32)
    for some in (pairs, hidden):
        noise = rng.standard_normal((len(some), width), np.float32)
        target[some[:, 1]] = source[some[:, 0]] @ turn + np.float32(NOISE) * noise
    return source, target, hidden


class Floor:
    """The time of the products alone; `spent` is what measuring took."""

    def __init__(self, sizes: tuple[int, int], width: int) -> None:
        self.spent = 0.0
        self._sizes, self._width = sizes, width
        self._calls, self._blocks = 0, []
        self._source, self._block = torch.randn(sizes[0], width), torch.randn(BLOCK, width)
        self._space = torch.empty(BLOCK, sizes[0])
        self._product()

    def measure_now_and_then(self, _: float) -> None:
        """Multiply one block at every eighth call."""
        self._calls += 1
        if self._calls % 8 == 1:
            seconds = self._product()
            self._blocks.append(seconds)
            self.spent += seconds

    def total(self) -> float:
        """Seconds of the products of all blocks of the target, and of both tables with a square matrix."""
        square, start = torch.randn(self._width, self._width), time.perf_counter()
        torch.mm(self._source, square)
        of_source = time.perf_counter() - start
        mapping = of_source * sum(self._sizes) / self._sizes[0]
        return mapping + statistics.mean(self._blocks) * self._sizes[1] / BLOCK

    def _product(self) -> float:
        start = time.perf_counter()
        torch.mm(self._block, self._source.mT, out=self._space)
        return time.perf_counter() - start


def found(learned: VocabMap, pairs: np.ndarray) -> float:
    """The share of pairs whose source token has its counterpart as the best entry."""
    return float((learned.target_ids[pairs[:, 0], 0] == pairs[:, 1]).mean())


def peak_memory_gib() -> float:
    """The highest resident size of this process so far (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20
