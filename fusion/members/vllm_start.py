"""Starting a vLLM engine: quietly, checked before it serves, with one sentence for what goes wrong."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic

from alignment.errors import ConfigError
from fusion.core import Advance, AdvanceFailed, NextTokens

if TYPE_CHECKING:
    from fusion.members.vllm_engine import VllmEngine

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
def explained(source: str) -> Iterator[None]:
    """Turn what vLLM raises at start into a ConfigError of one sentence."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{source}: {explain(error)}") from error


def explain(error: Exception) -> str:
    """vLLM's own message, and what to change where that is known."""
    first = error.errors()[0] if isinstance(error, pydantic.ValidationError) else None
    if first is not None and first["loc"]:
        text, advice = f"{'.'.join(map(str, first['loc']))}: {first['msg']}", "correct its engine_args"
    else:
        text = first["msg"] if first is not None else str(error) or type(error).__name__
        hints = (hint for pattern, hint in HINTS if re.search(pattern, text, re.IGNORECASE))
        advice = next(hints, "see the log above")
    text = " ".join(text.removeprefix("Value error, ").split())
    return f"vLLM cannot start it ({text[:300].rstrip('. ')}): {advice}."


HINTS = (
    (r"divisible by tensor parallel|tensor.parallel", "take a tensor_parallel_size that divides its heads"),
    (
        r"KV cache is needed|max seq len|larger than the available KV cache",
        "raise cache_tokens or lower max_context",
    ),
    (
        r"free memory|out of memory|available memory",
        "free the device, or lower what engine_args ask of its memory",
    ),
    (
        r"architectures?.*not supported|no module or model",
        "take a model that vLLM supports, or engine: transformers",
    ),
    (r"max_model_len|max seq", "lower max_context"),
    (r"world size|device count|not enough", "give it as many devices as its parallel sizes multiply to"),
)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep vLLM's account of its start, and its progress bars, out of the server's own log.

    Afterwards what vLLM has to say goes where the server's log goes, from warnings on.
    """
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")
    loggers = [logging.getLogger(name) for name in ("vllm", "torch")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(vllm|torch)\.")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
            loggers[0].setLevel(logging.WARNING)


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
            f"{source}: a text in parts differs by {worst:.2g} nats from the same at once on this vLLM; "
            "use engine: transformers for it."
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
