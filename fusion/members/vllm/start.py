"""Starting a vLLM engine: quietly, and checked before it serves."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from alignment.errors import ConfigError
from fusion.core import Advance, AdvanceFailed, NextTokens

if TYPE_CHECKING:
    from fusion.members.vllm.engine import VllmEngine

TOLERANCE = 0.5
"""Largest difference of a token's log-probability, in nats, between a text at once and in parts.

Half precision and quantised caches give a tenth; a wrong position or a stale row gives several."""


def lora_request(adapter: str | None) -> Any:
    """What makes a request run with the adapter."""
    if adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, adapter)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep vLLM's account of its start, and its progress bars, out of the server's own log.

    Afterwards what vLLM and torch have to say goes where the server's log goes, from warnings on.
    """
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")
    loggers = [logging.getLogger(name) for name in ("vllm", "torch")]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(vllm|torch)\.")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger in loggers:
                logger.setLevel(logging.WARNING)


def check(engine: VllmEngine, source: str) -> None:
    """Before it serves: a text at once, and in parts with tokens taken back, must come to the same.

    Raises ConfigError where they do not, which is what a model runner looks like that this was not written for.
    """
    draw = np.random.default_rng(0)
    length = max(
        3, min(40, engine.capacity.context // 2, engine.capacity.cache_tokens // 2 - engine.capacity.block)
    )
    ids = draw.integers(engine.vocabulary_size, size=length).tolist()
    wrong = draw.integers(engine.vocabulary_size, size=length).tolist()
    cut = length // 2
    try:
        whole = _score(engine, Advance(1, 0, ids, "all"))
        engine.close([1])
        _score(engine, Advance(1, 0, ids[:cut] + wrong[cut:], "last"))
        rest = _score(engine, Advance(1, cut, ids[cut:], "all"))
    finally:
        engine.close([1])
    assert whole.appended_logprobs is not None
    assert rest.appended_logprobs is not None
    differences = np.abs(whole.appended_logprobs[cut:] - rest.appended_logprobs)
    best = np.abs(whole.logprobs[cut:, 0] - rest.logprobs[:, 0])
    worst = float(max(differences.max(initial=0.0), best.max()))
    if not worst <= TOLERANCE:
        raise ConfigError(
            f"{source}: a text in parts differs by {worst:.2g} nats from the same at once on this vLLM; leave out "
            "what engine_args change of its arithmetic (kv_cache_dtype, quantization), or use engine: "
            "transformers."
        )


def _score(engine: VllmEngine, advance: Advance) -> NextTokens:
    engine.add([advance])
    while engine.has_work():
        for answer in engine.step():
            if isinstance(answer, AdvanceFailed):
                raise ConfigError(f"The start-up check failed: {answer.reason}")
            assert isinstance(answer, NextTokens)
            return answer
    raise AssertionError("an engine with work never answered")
