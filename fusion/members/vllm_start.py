"""Starting a vLLM engine: its arguments, its check before it serves, and one sentence for what goes wrong."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic

from alignment.errors import ConfigError
from fusion.core import Advance, AdvanceFailed, NextTokens

if TYPE_CHECKING:
    from fusion.members.vllm_engine import VllmEngine

# What the configuration has a name of its own for, or what the engine depends on.
OURS = {
    "model": "source",
    "dtype": "dtype",
    "revision": "revision",
    "trust_remote_code": "trust_remote_code",
    "max_num_seqs": "max_sequences",
    "max_model_len": "max_context",
    "max_num_batched_tokens": "prefill_chunk",
    "max_logprobs": "candidates",
}
FIXED = ("async_scheduling", "logprobs_mode", "scheduler_cls", "skip_tokenizer_init", "worker_extension_cls")
CACHE_SIZES = frozenset({"gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override"})
BLOCK = 32  # tokens; the CPU's kernels like multiples of it, and its own default wastes half of 128 a sequence

TOLERANCE = 0.5
"""Largest difference of a token's log-probability, in nats, between a text at once and in parts.

Half precision and quantised caches give a tenth; a wrong position or a stale row gives several."""


def arguments(
    source: str,
    given: Mapping[str, Any],
    *,
    dtype: str,
    revision: str | None,
    trust_remote_code: bool,
    cache_tokens: int,
    max_sequences: int,
    max_context: int | None,
    chunk: int,
    top_k: int,
    adapter: str | None,
) -> dict[str, Any]:
    """The arguments for `EngineArgs`. Raises ConfigError for one that is not to be given, or is unknown."""
    require_known(source, given)
    result: dict[str, Any] = {
        "model": source,
        "dtype": dtype,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "max_num_seqs": max_sequences,
        "max_model_len": max_context,
        # Everybody's next token fits beside a chunk of somebody's prompt.
        "max_num_batched_tokens": chunk + max_sequences,
        "max_logprobs": top_k,
        "enable_lora": adapter is not None,
        "use_tqdm_on_load": False,
        **given,
    }
    if on_cpu():
        result.setdefault("block_size", BLOCK)
    world = result.get("tensor_parallel_size", 1) * result.get("pipeline_parallel_size", 1)
    if world == 1:
        result.setdefault("distributed_executor_backend", "uni")  # no process of its own for one worker
    if CACHE_SIZES.isdisjoint(given):
        block = result.get("block_size") or 16
        result["num_gpu_blocks_override"] = 1 + -(-cache_tokens // block)
        result["kv_cache_memory_bytes"] = 1  # known beforehand: nothing to profile
    return result


def require_known(source: str, given: Mapping[str, Any]) -> None:
    """Raise ConfigError for an engine argument that vLLM does not know or that is not the user's to give."""
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in fields(EngineArgs)}
    for name in given:
        if name in OURS:
            raise ConfigError(f"{source}: engine_args.{name} is set by {OURS[name]}; give that instead.")
        if name in FIXED:
            raise ConfigError(f"{source}: engine_args.{name} is not free: fusion depends on it; leave it out.")
        if name not in known:
            raise ConfigError(f"{source}: vLLM has no engine argument {name}; see `vllm serve --help`.")


def require_device(source: str, device: str) -> None:
    """Raise ConfigError for a device that the installed vLLM does not compute on, or cannot be told apart.

    Which GPU a vLLM takes is decided by what its process can see.
    """
    from vllm.platforms import current_platform

    kind, _, index = device.partition(":")
    computes_on = current_platform.device_type
    if kind != computes_on:
        raise ConfigError(
            f"{source}: the installed vLLM computes on {computes_on}; set device: {computes_on}, or install the "
            "vLLM of that device."
        )
    if int(index or 0) > 0:
        raise ConfigError(
            f"{source}: vLLM takes the first device it can see; run it in a process that sees {device} alone "
            "(CUDA_VISIBLE_DEVICES)."
        )


def on_cpu() -> bool:
    """Whether the installed vLLM computes on the CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


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
    if isinstance(error, pydantic.ValidationError):
        first = error.errors()[0]
        text = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first["loc"] else first["msg"]
    else:
        text = str(error) or type(error).__name__
    text = " ".join(text.removeprefix("Value error, ").split())
    advice = next(
        (hint for pattern, hint in HINTS if re.search(pattern, text, re.IGNORECASE)), "see the log above"
    )
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
