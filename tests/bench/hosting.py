"""What a round costs with three members in three processes, against the slowest member's step.

The members' steps are a fixed sleep (`SleepingEngine`), so the machine needs no core for each of them, and all
that a round takes beyond the longest sleep is the server's own: messages, wake-ups, fusion, sampling, text.

    python -m tests.bench.hosting
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment.tokenizer import Tokenizer
from fusion.core import Member
from fusion.ensemble import Ensemble, Model, build_ensemble
from fusion.fuser import Fuser
from fusion.members.inline import InlineMember
from fusion.members.load import EngineSpec, load_engine
from fusion.members.process import process
from fusion.members.remote import RemoteMember
from tests.bench.decode import Stages, fused_round_seconds

MODELS = Path(__file__).parents[2] / "deploy" / "demo" / "models"
NAMES = ("lingvo", "abacus", "almanac")
SECONDS = (0.012, 0.016, 0.020)  # of their steps


def members(host: str, steps: Sequence[float], tokenizers: dict[str, Tokenizer]) -> dict[str, Member]:
    specs = {
        name: EngineSpec(
            "tests.bench.sleeping:SleepingEngine",
            {"seconds": seconds, "vocabulary_size": tokenizers[name].vocabulary_size, "seed": seed},
        )
        for seed, (name, seconds) in enumerate(zip(NAMES, steps, strict=True))
    }
    if host == "inline":
        return {name: InlineMember(name, load_engine(spec)) for name, spec in specs.items()}
    remote = {name: RemoteMember(name, spec, process({"OMP_NUM_THREADS": "1"})) for name, spec in specs.items()}
    for member in remote.values():
        member.wait()
    return dict(remote)


def ensemble_of(members: dict[str, Member], tokenizers: dict[str, Tokenizer]) -> Ensemble:
    models = {
        name: Model(member, tokenizers[name], (tokenizers[name].hf.eos_token_id,), "sleep")
        for name, member in members.items()
    }
    return build_ensemble("sleepers", models, NAMES[0])


def run(
    host: str = "process",
    steps: Sequence[float] = SECONDS,
    batches: Sequence[int] = (1, 4, 16),
    repeats: int = 3,
    tokens: int = 64,
) -> dict[str, dict[str, Any]]:
    """By number of sequences: milliseconds a round, its ratio to the slowest step, and where the rest goes."""
    tokenizers = {name: Tokenizer.load(str(MODELS / name)) for name in NAMES}
    slowest = max(steps)
    running = members(host, steps, tokenizers)
    ensemble = ensemble_of(running, tokenizers)
    fuser = Fuser(running)
    fuser.start()
    rows: dict[str, dict[str, Any]] = {}
    try:
        fused_round_seconds(fuser, ensemble, 1, seed=0, tokens=4)  # warm
        for batch in batches:
            fuser.observer = stages = Stages()
            seconds = [
                fused_round_seconds(fuser, ensemble, batch, seed=100 * repeat, tokens=tokens)
                for repeat in range(repeats)
            ]
            round_seconds = statistics.median(seconds)
            rows[str(batch)] = {
                "ms_per_round": 1e3 * round_seconds,
                "slowest_member_ms": 1e3 * slowest,
                "ratio": round_seconds / slowest,
                "best_ratio": min(seconds) / slowest,
                "share_of_round": stages.shares(),
            }
    finally:
        fuser.stop()
    return rows


def main() -> None:
    result = run(*sys.argv[1:2])
    for batch, row in result.items():
        print(
            f"{batch:>3} sequences: {row['ms_per_round']:.2f} ms a round, slowest member "
            f"{row['slowest_member_ms']:.0f} ms, ratio {row['ratio']:.3f}",
            flush=True,
        )
    print(json.dumps({"steps_ms": [1e3 * seconds for seconds in SECONDS], "rounds": result}))


if __name__ == "__main__":
    main()
