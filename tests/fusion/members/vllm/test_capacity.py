"""A full cache makes sequences wait, never each other for ever: vLLM is given no more than it can hold."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from alignment.errors import OverloadedError
from alignment.text.tokenizer import Tokenizer
from fusion.assembly.ensembles import build_ensemble
from fusion.core import Delta, End
from fusion.ensemble import Ensemble, Model
from fusion.loop.fuser import Fuser
from fusion.members.hosts.inline import InlineMember
from fusion.options import FusionParams, SamplingParams

pytest.importorskip("vllm")

from fusion.assembly.checkpoints import read_vocabulary
from fusion.members.vllm.engine import VllmEngine

MODELS = Path(__file__).parents[4] / "deploy" / "demo" / "models"
# Blocks of 32 tokens: 24 and 20 of them, not both the bottleneck at the same time.
CACHES = {"lingvo": 24 * 32, "abacus": 20 * 32}
PLACES = {"lingvo": 7, "abacus": 9}
WORDS = ["seven", "times", "a", "train", "of", "the", "city", "and", "her", "brother", "in", "two", "rivers"]


@dataclass
class Listener:
    """Counts what comes of sequences."""

    finished: list[int] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    ended: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def of(self, index: int):
        def on_update(update: Delta) -> None:
            if isinstance(update, End) and update.error is not None:
                self.errors.append(update.error)
            if isinstance(update, End):
                self.finished.append(index)
            if isinstance(update, End):
                self.ended.release()

        return on_update


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, VllmEngine]]:
    loaded = {}
    for name, tokens in CACHES.items():
        loaded[name] = VllmEngine.load(
            str(MODELS / name),
            dtype="float32",
            cache_tokens=tokens,
            max_sequences=PLACES[name],
            max_context=400,
            prefill_chunk=64,
            engine_args={"enforce_eager": True},
        )
    yield loaded
    for engine in loaded.values():
        engine.shutdown()


@dataclass
class Site:
    fuser: Fuser
    ensembles: dict[str, Ensemble]


def site(engines: dict[str, VllmEngine], **limits: int) -> Site:
    """With a fuser that is still to be started."""
    models = {
        name: Model(
            InlineMember(name, engine),
            Tokenizer.load(str(MODELS / name)),
            read_vocabulary(str(MODELS / name)).stop_ids,
            name,
        )
        for name, engine in engines.items()
    }
    ensembles = {name: build_ensemble(name, {name: model}, name) for name, model in models.items()}
    ensembles["both"] = build_ensemble("both", models, "lingvo")
    return Site(Fuser({name: model.member for name, model in models.items()}, **limits), ensembles)


def leave(site: Site) -> None:
    """Stop the fuser once everything is closed, but not the engines, which serve the next test."""
    deadline = time.monotonic() + 20
    while any(member._engine._open for member in site.fuser.members.values()) and time.monotonic() < deadline:
        time.sleep(0.01)
    for member in site.fuser.members.values():
        member._engine = Lent(member._engine)
    site.fuser.stop()


class Lent:
    """An engine that outlives its member."""

    def __init__(self, engine: VllmEngine) -> None:
        self.device = engine.device

    def shutdown(self) -> None:
        pass


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def unused(engine: VllmEngine) -> bool:
    scheduler = engine._core._core.scheduler
    free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    return not scheduler.requests and free * 32 == engine.capacity.cache_tokens


def test_many_sequences_of_all_lengths_fill_the_cache_and_finish(engines: dict[str, VllmEngine]) -> None:
    here, rng, listener = site(engines, max_waiting=500), random.Random(1), Listener()
    cancelled = set()
    full = 0
    for index in range(120):
        if index == 60:
            here.fuser.start()
        ensemble = here.ensembles[rng.choice(("both", "both", "lingvo", "abacus"))]
        prompt = ensemble.encode_text(text(rng, rng.choice((1, 5, 20, 60, 110))))
        room = ensemble.max_new_tokens(prompt, list(ensemble.models))
        sampling = SamplingParams(
            max_tokens=min(room, rng.choice((1, 3, 31, 33, 64, 150))),
            temperature=rng.choice((0.0, 1.0, 1.5)),
            seed=index,
            ignore_eos=rng.random() < 0.5,
        )
        number = here.fuser.submit(
            ensemble, prompt, sampling, FusionParams(), flow=str(index % 3), on_update=listener.of(index)
        )
        if rng.random() < 0.1:
            here.fuser.cancel(number)
            cancelled.add(index)
        full = max(full, here.fuser.waiting_sequences())
    while not set(range(120)) - cancelled <= set(listener.finished):
        assert listener.ended.acquire(timeout=60), "nothing moves any more"
    assert not listener.errors
    assert full > 50
    assert here.fuser.open_sequences() == here.fuser.waiting_sequences() == 0
    leave(here)
    assert all(unused(engine) for engine in engines.values())


def test_when_the_line_is_full_too_a_request_is_turned_away(engines: dict[str, VllmEngine]) -> None:
    here, listener = site(engines, max_waiting=3), Listener()
    here.fuser.start()
    ensemble = here.ensembles["both"]
    prompt = ensemble.encode_text("one")
    # They claim most of the cache, and end after a word.
    sampling = SamplingParams(max_tokens=390 - len(prompt.ids["lingvo"]), temperature=0.0, stop=(" ",))
    accepted = 0

    def submit_for_ever() -> None:
        nonlocal accepted
        while True:
            here.fuser.submit(ensemble, prompt, sampling, FusionParams(), on_update=listener.of(accepted))
            accepted += 1

    with pytest.raises(OverloadedError, match="sequences are waiting already"):
        submit_for_ever()
    for _ in range(accepted):
        assert listener.ended.acquire(timeout=60)
    assert not listener.errors
    leave(here)
    assert all(unused(engine) for engine in engines.values())
