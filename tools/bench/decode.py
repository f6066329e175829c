"""Fused decoding against its floors: the members' own cached decoding in plain transformers.

A step is `model(...)` with a `DynamicCache` and an argmax, at the same batch and context, without any fusion. The
lockstep floor of a round is one step of every member, taken in turn as a round takes them: what three models find
in the processor's cache is not what one of them finds; it is measured before and after the rounds. The other floor
lets each member decode alone to its end, and adds the steps up. All are measured in turn in one process.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from alignment.text.tokenizer import Tokenizer
from fusion.assembly.ensembles import build_ensemble
from fusion.core import Delta, End
from fusion.ensemble import Ensemble, Model
from fusion.loop.fuser import Fuser
from fusion.loop.observer import Observer
from fusion.members.hosts.inline import InlineMember
from fusion.members.transformers.engine import TransformersEngine
from fusion.options import FusionParams, SamplingParams
from fusion.round import Round
from tools.bench.models import prompt

PROMPT_WORDS = 64
NEW_TOKENS = 64
STAGES = ("waiting", "fusion", "sampling", "synchronisation")


class Stages(Observer):
    """Observer of the stages of rounds after the first, in seconds over all sequences."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def fused(self, rounds: Round) -> None:
        self.seconds["waiting"] += sum(rounds.waiting)
        for stage in STAGES[1:]:
            self.seconds[stage] += getattr(rounds, stage) * len(rounds.waiting)

    def shares(self) -> dict[str, float]:
        return {stage: seconds / sum(self.seconds.values()) for stage, seconds in self.seconds.items()}


@torch.inference_mode()
def lockstep_seconds(models: Sequence[PreTrainedModel], prompts: Sequence[torch.Tensor], steps: int) -> float:
    """Seconds per round of greedy steps of all models in turn, each over a batch of its own prompts [B, T]."""
    caches = [DynamicCache(config=model.config) for model in models]
    latest = [
        model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        for model, ids, cache in zip(models, prompts, caches, strict=True)
    ]
    start = time.perf_counter()
    for _ in range(steps):
        for at, (model, cache) in enumerate(zip(models, caches, strict=True)):
            tokens = latest[at][:, -1:].argmax(-1)
            latest[at] = model(tokens, past_key_values=cache, use_cache=True).logits
    return (time.perf_counter() - start) / steps


def fused_round_seconds(
    fuser: Fuser, ensemble: Ensemble, batch: int, seed: int, tokens: int = NEW_TOKENS, words: int = PROMPT_WORDS
) -> float:
    """Seconds per round with `batch` sequences at once, from the last first token to the first last one."""
    begun, ended = [0.0] * batch, [0.0] * batch
    left = threading.Semaphore(0)

    def listener(i: int):
        def on_update(update: Delta) -> None:
            now = time.perf_counter()
            begun[i] = begun[i] or now
            if isinstance(update, End) and update.error is not None:
                raise update.error
            if isinstance(update, End):
                ended[i] = now
                left.release()

        return on_update

    prompts = [ensemble.encode_text(prompt(words, seed + i)) for i in range(batch)]
    for i in range(batch):
        fuser.submit(
            ensemble,
            prompts[i],
            SamplingParams(max_tokens=tokens, temperature=1.0, seed=seed + i, ignore_eos=True),
            FusionParams(),
            on_update=listener(i),
        )
    for _ in range(batch):
        left.acquire()
    return statistics.mean(e - b for b, e in zip(begun, ended, strict=True)) / (tokens - 1)


def load(folders: dict[str, Path], max_sequences: int) -> dict[str, Model]:
    models = {}
    for name, folder in folders.items():
        engine = TransformersEngine.load(
            str(folder),
            dtype="float32",
            device="cpu",
            cache_tokens=max_sequences * 512,
            max_sequences=max_sequences,
        )
        models[name] = Model(InlineMember(name, engine), Tokenizer.load(str(folder)), (2,), str(folder))
    return models


def run(folders: dict[str, Path], *, batches: tuple[int, ...] = (1, 16), repeats: int = 9) -> dict[str, object]:
    """Measure; returns milliseconds per token and the ratios, by batch."""
    plain = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in folders.values()]
    models = load(folders, max(batches))
    ensemble = build_ensemble("bench", models, next(iter(models)))
    fuser = Fuser({name: model.member for name, model in models.items()})
    fuser.start()
    results: dict[str, object] = {}
    try:
        for batch in batches:
            locksteps, floors, fused, shares = [], [], [], []
            for repeat in range(repeats + 1):
                torch.manual_seed(repeat)
                prompts = [torch.randint(3, model.config.vocab_size, (batch, PROMPT_WORDS + 4)) for model in plain]
                before = lockstep_seconds(plain, prompts, NEW_TOKENS - 1)
                fuser.observer = stages = Stages()
                round_seconds = fused_round_seconds(fuser, ensemble, batch, seed=1000 * repeat)
                lockstep = (before + lockstep_seconds(plain, prompts, NEW_TOKENS - 1)) / 2
                floor = sum(
                    lockstep_seconds([model], [ids], NEW_TOKENS - 1)
                    for model, ids in zip(plain, prompts, strict=True)
                )
                if repeat:  # the first warms up
                    locksteps.append(lockstep)
                    floors.append(floor)
                    fused.append(round_seconds)
                    shares.append(stages.shares())
            results[str(batch)] = {
                "lockstep_ms_per_round": 1e3 * statistics.median(locksteps),
                "floor_ms_per_round": 1e3 * statistics.median(floors),
                "fused_ms_per_round": 1e3 * statistics.median(fused),
                "over_lockstep": statistics.median(a / b for a, b in zip(fused, locksteps, strict=True)),
                "ratio": statistics.median(a / b for a, b in zip(fused, floors, strict=True)),
                "fused_tokens_per_second": batch / statistics.median(fused),
                "share_of_round": {stage: statistics.median(share[stage] for share in shares) for stage in STAGES},
            }
    finally:
        fuser.stop()
    return results
