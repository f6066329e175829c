"""Round time with three members in three processes, against the slowest member's step.

The members' steps are a fixed sleep (`SleepingEngine`), so the machine needs no core for each of them, and all
that a round takes beyond the longest sleep is the server's own: messages, wake-ups, fusion, sampling, text.

    python -m tools.bench.hosting
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from alignment.text.tokenizer import Tokenizer
from fusion.assembly.ensembles import build_ensemble
from fusion.core import Delta, End, Member
from fusion.ensemble import Ensemble, Model
from fusion.loop.fuser import Fuser
from fusion.members.hosts.inline import InlineMember
from fusion.members.hosts.process import process
from fusion.members.hosts.remote import RemoteMember
from fusion.members.registry import EngineSpec, load_engine
from fusion.options import FusionParams, SamplingParams
from tools.bench.decode import Stages

MODELS = Path(__file__).parents[2] / "deploy" / "demo" / "models"
NAMES = ("lingvo", "abacus", "almanac")
SECONDS = (0.012, 0.016, 0.020)  # of their steps


def members(host: str, steps: Sequence[float], tokenizers: dict[str, Tokenizer]) -> dict[str, Member]:
    specs = {
        name: EngineSpec(
            "tools.bench.sleeping:SleepingEngine",
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


class Steps(Stages):
    """Observer of the seconds of members' steps, as they measured them, and of the stages of rounds."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: defaultdict[str, list[float]] = defaultdict(list)

    def answered(self, member: str, step: float, prompts: Sequence[float], tokens: Sequence[float]) -> None:
        self.steps[member].append(step)

    def slowest(self) -> float:
        """Seconds that the slowest member's step takes: its sleep, and by how much that oversleeps."""
        return max(statistics.median(seconds) for seconds in self.steps.values())


def rounds(fuser: Fuser, ensemble: Ensemble, batch: int, tokens: int) -> list[float]:
    """Seconds from every token to the next, of `batch` sequences at once."""
    came: list[list[float]] = [[] for _ in range(batch)]
    left = threading.Semaphore(0)

    def listener(i: int) -> Callable[[Delta], None]:
        def on_update(update: Delta) -> None:
            assert not (isinstance(update, End) and update.error), update
            came[i].append(time.perf_counter())
            if isinstance(update, End):
                left.release()

        return on_update

    for i in range(batch):
        sampling = SamplingParams(max_tokens=tokens, temperature=1.0, seed=i, ignore_eos=True)
        text = ensemble.encode_text(f"Sequence {i} begins here")
        fuser.submit(ensemble, text, sampling, FusionParams(), on_update=listener(i))
    for _ in range(batch):
        left.acquire()
    return [after - before for times in came for before, after in pairwise(times)]


def run(
    host: str = "process",
    steps: Sequence[float] = SECONDS,
    batches: Sequence[int] = (1, 4, 16),
    tokens: int = 128,
) -> dict[str, dict[str, Any]]:
    """By number of sequences: a round's seconds against the slowest member's step, and the stages of the rest.

    `ratio` is of the median round, which a busy machine's interruptions do not reach; `mean_ratio` has them all.
    """
    tokenizers = {name: Tokenizer.load(str(MODELS / name)) for name in NAMES}
    running = members(host, steps, tokenizers)
    ensemble = ensemble_of(running, tokenizers)
    fuser = Fuser(running)
    fuser.start()
    rows: dict[str, dict[str, Any]] = {}
    try:
        rounds(fuser, ensemble, 1, tokens=4)  # warm
        for batch in batches:
            fuser.observer = stages = Steps()
            seconds = rounds(fuser, ensemble, batch, tokens)
            slowest = stages.slowest()
            rows[str(batch)] = {
                "ms_per_round": 1e3 * statistics.median(seconds),
                "slowest_member_ms": 1e3 * slowest,
                "ratio": statistics.median(seconds) / slowest,
                "mean_ratio": statistics.mean(seconds) / slowest,
                "share_of_round": stages.shares(),
            }
    finally:
        fuser.stop()
    return rows


def describe_row(batch: str, row: dict[str, Any]) -> str:
    """A line of the result."""
    return (
        f"{batch:>3} sequences, three processes: {row['ms_per_round']:.2f} ms a round, slowest member "
        f"{row['slowest_member_ms']:.2f} ms, ratio {row['ratio']:.3f} (of means {row['mean_ratio']:.3f})"
    )


def main() -> None:
    result = run(*sys.argv[1:2])
    for batch, row in result.items():
        print(describe_row(batch, row), flush=True)
    print(json.dumps({"steps_ms": [1e3 * seconds for seconds in SECONDS], "rounds": result}))


if __name__ == "__main__":
    main()
