"""Fused decoding on vLLM against its floor: `python -m tools.bench.vllm_decode [small] [large]`.

The floor of a round is the sum over members of the time that a step of plain generation takes on the same engine
at the same batch and context: vLLM's own loop and sampler, greedy, no log-probabilities, no detokenising. Both are
measured in turn in one process. The last line is a JSON object.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from alignment.text.tokenizer import Tokenizer
from fusion.assembly.ensembles import build_ensemble
from fusion.core import Generate, Generated
from fusion.ensemble import Ensemble, Model
from fusion.loop.fuser import Fuser
from fusion.members.hosts.inline import InlineMember
from fusion.members.vllm.engine import VllmEngine
from fusion.options import SamplingParams
from tools.bench import models
from tools.bench.decode import Stages, fused_round_seconds
from tools.bench.models import prompt

NEW_TOKENS = 48
WORDS = 64
SIZES = {"small": models.SMALL, "large": models.LARGE}
BATCHES = {"small": (1, 4, 16, 64), "large": (1, 16)}
CONTEXTS = (128, 2048, 8192)  # of one sequence, in tokens of the pivot, about


def floor_round_seconds(engine: VllmEngine, prompts: list[list[int]]) -> float:
    """Seconds per token of plain generation with a batch of prompts, first to last token."""
    sampling = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)
    begun, ended = [0.0] * len(prompts), [0.0] * len(prompts)
    engine.add([Generate(i, ids, sampling, [], []) for i, ids in enumerate(prompts)])
    while engine.has_work():
        answers = engine.step()
        now = time.perf_counter()
        for answer in answers:
            assert isinstance(answer, Generated)
            begun[answer.sequence] = begun[answer.sequence] or now
            ended[answer.sequence] = now
    engine.close(range(len(prompts)))
    return statistics.mean(e - b for b, e in zip(begun, ended, strict=True)) / (NEW_TOKENS - 1)


def load(folders: dict[str, Path], sequences: int) -> dict[str, VllmEngine]:
    return {
        name: VllmEngine.load(
            str(folder),
            dtype="float32",
            cache_tokens=max(sequences * 320, 3 * models.POSITIONS),
            max_sequences=sequences,
            engine_args={"enforce_eager": True},
        )
        for name, folder in folders.items()
    }


def measure(
    fuser: Fuser, ensemble: Ensemble, engines: dict[str, VllmEngine], batch: int, words: int, repeats: int
) -> dict[str, object]:
    floors, fused, shares = [], [], []
    for repeat in range(repeats + 1):
        seed = 1000 * repeat
        texts = [ensemble.encode_text(prompt(words, seed + i)) for i in range(batch)]
        floor = sum(floor_round_seconds(engine, [t.ids[name] for t in texts]) for name, engine in engines.items())
        fuser.observer = Stages()
        seconds = fused_round_seconds(fuser, ensemble, batch, seed, NEW_TOKENS, words)
        while any(engine._open for engine in engines.values()):  # their thread must be done with them
            time.sleep(0.01)
        if repeat:  # the first warms up
            floors.append(floor)
            fused.append(seconds)
            shares.append(fuser.observer.shares())
    return {
        "tokens_of_context": statistics.mean(len(t.ids[ensemble.pivot]) for t in texts),
        "floor_ms_per_round": 1e3 * statistics.median(floors),
        "fused_ms_per_round": 1e3 * statistics.median(fused),
        "ratio": statistics.median(a / b for a, b in zip(fused, floors, strict=True)),
        "fused_tokens_per_second": batch / statistics.median(fused),
        "share_of_round": {stage: statistics.median(share[stage] for share in shares) for stage in shares[0]},
    }


def run(size: str, repeats: int = 3) -> dict[str, object]:
    batches = BATCHES[size]
    with tempfile.TemporaryDirectory() as scratch:
        folders = models.build(Path(scratch), SIZES[size])
        engines = load(folders, max(batches))
        members = {
            name: Model(InlineMember(name, engine), Tokenizer.load(str(folders[name])), (2,), name)
            for name, engine in engines.items()
        }
    ensemble = build_ensemble("bench", members, next(iter(members)))
    fuser = Fuser({name: model.member for name, model in members.items()})
    fuser.start()
    result: dict[str, object] = {}
    try:
        rows = [(f"{batch} sequences", batch, WORDS) for batch in batches]
        if size == "small":
            tokens = len(ensemble.encode_text(prompt(WORDS, 0)).ids[ensemble.pivot]) / WORDS
            rows += [(f"context {length}", 1, int(length / tokens)) for length in CONTEXTS]
        for label, batch, words in rows:
            row = result[label] = measure(fuser, ensemble, engines, batch, words, repeats)
            print(
                f"{size}, {label}: {row['fused_ms_per_round']:.1f} ms a round, floor "
                f"{row['floor_ms_per_round']:.1f} ms, ratio {row['ratio']:.2f}, "
                f"{row['fused_tokens_per_second']:.0f} tokens/s",
                flush=True,
            )
    finally:
        fuser.stop()
    return result


def main() -> None:
    results = {size: run(size) for size in sys.argv[1:] or SIZES}
    machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({"machine": machine, "vllm_decode": results}))


if __name__ == "__main__":
    main()
