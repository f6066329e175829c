"""Options of a vLLM engine, and their validation by vLLM as far as it needs no weights."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.errors import ConfigError
from fusion.members.adapters import read_adapter
from fusion.members.gguf import WEIGHTS
from fusion.members.vllm import KIND
from fusion.members.vllm.hints import explained
from fusion.options import EngineOptions

if TYPE_CHECKING:
    from vllm.config import VllmConfig

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
FIXED = (
    "async_scheduling",
    "data_parallel_size",
    "enable_batch_sharded_sampling",  # gathers no more than the best tokens
    # Blocks that are copied out of the cache are taken for those of a text that was rolled back since.
    "kv_offloading_backend",
    "kv_offloading_size",
    "kv_sharing_fast_prefill",  # skips positions that are scored
    "kv_transfer_config",
    "logprobs_mode",
    "scheduler_cls",
    "skip_tokenizer_init",
    "spec_method",
    "spec_model",
    "spec_tokens",
    "speculative_config",
    "worker_extension_cls",
)
ENVIRONMENT = {
    "VLLM_CONFIGURE_LOGGING": "0",
    "VLLM_NO_USAGE_STATS": "1",  # nobody is told what runs here, unless the environment says otherwise
    # flashinfer compiles its sampler with nvcc, which is neither in the image nor among pip's packages. Tokens are
    # drawn here anyway, but for a model that is served alone.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}
"""What vLLM reads from the environment, where that says nothing."""
UNPROFILED = 0.01
"""The `gpu_memory_utilization` given to vLLM where the size of its cache is set.

It asks for that share of the memory to be free, whatever it will need, and uses the number for nothing else.
"""
BLOCK = 32  # tokens; the CPU's kernels like multiples of it, and its own default wastes half of 128 a sequence


@dataclass(frozen=True, slots=True)
class Options(EngineOptions):
    """Options for running a checkpoint on vLLM, besides the sizes that every engine has.

    Attributes:
        source: a folder or a Hugging Face id.
        engine_args: arguments of vLLM's own `EngineArgs`, which validates them. They may say how large the cache
            is to be, in the place of `cache_tokens`.
        adapters: folders of LoRA adapters by name, which sequences may run with.
    """

    source: str
    dtype: str = "auto"
    device: str = "cpu"
    revision: str | None = None
    trust_remote_code: bool = False
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    adapters: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep vLLM's account of its start, and its progress bars, out of the server's own log.

    Afterwards what vLLM and torch have to say goes where the server's log goes, from warnings on.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
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


def configured(options: Options) -> VllmConfig:
    """vLLM's own configuration of the engine, validated by vLLM.

    Raises:
        ConfigError: one sentence, for whatever can be known to be wrong before weights are read.
    """
    source = options.source
    require_installed(source)
    if Path(source, WEIGHTS).exists():
        raise ConfigError(f"{Path(source, WEIGHTS).resolve()} is a GGUF file; use the transformers engine.")
    with quiet():
        from fusion.members.vllm.core import engine_config, require_tested
    require_tested()
    require_device(source, options.device)
    require_known(source, options.engine_args)
    require_executor(source, options.engine_args.get("distributed_executor_backend"))
    with explained(source), quiet():
        return engine_config(arguments(options))


def require_installed(source: str) -> None:
    """Raise ConfigError where there is no vLLM."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            f"{source} is to run on vLLM, which is not installed; in Tutti's folder: pip install '.[vllm]'."
        )


def arguments(options: Options) -> dict[str, Any]:
    """Return the arguments for `EngineArgs`. The user's may still be of a wrong type, which vLLM reports."""
    given = options.engine_args
    result: dict[str, Any] = {
        **{name: getattr(options, own) for name, own in OURS.items()},
        # The next token of every sequence fits beside a chunk of one prompt.
        "max_num_batched_tokens": options.prefill_chunk + options.max_sequences,
        "enable_lora": bool(options.adapters),
        "use_tqdm_on_load": False,
        **_lora(options),
        **given,
    }
    if on_cpu():
        result.setdefault("block_size", BLOCK)
    if result.get("tensor_parallel_size", 1) == result.get("pipeline_parallel_size", 1) == 1:
        result.setdefault("distributed_executor_backend", "uni")  # no process of its own for one worker
    if sized_by_tokens(options):
        result["kv_cache_memory_bytes"] = 1  # the core counts blocks: nothing to profile
    if "kv_cache_memory_bytes" in result:
        result.setdefault("gpu_memory_utilization", UNPROFILED)
    return result


def sized_by_tokens(options: Options) -> bool:
    """Return whether `cache_tokens` says how large the cache is, and no argument of vLLM's own."""
    return KIND.sizes_cache.isdisjoint(options.engine_args)


RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM sets room aside for


def _lora(options: Options) -> dict[str, Any]:
    """Room for all adapters at once: with less, vLLM never runs the rows of several in one step.

    On a CPU there is one place more, which stays empty: there vLLM computes a row without an adapter with what
    lies in the last place, as soon as it shares a step with one that has an adapter.
    """
    if not options.adapters:
        return {}
    rank = max(read_adapter(folder).rank for folder in options.adapters.values())
    room = next((size for size in RANKS if size >= rank), None)
    if room is None:
        raise ConfigError(f"{options.source}: an adapter has rank {rank}; vLLM takes up to {RANKS[-1]}.")
    count = len(options.adapters)
    places = count + on_cpu()
    for name in ("max_loras", "max_cpu_loras"):
        own = options.engine_args.get(name)
        if isinstance(own, int) and own < places:
            raise ConfigError(
                f"{options.source}: engine_args.{name} is {own}, but {count} adapters take {places} places to "
                "share a step; raise it or leave it out."
            )
    return {"max_loras": places, "max_cpu_loras": places, "max_lora_rank": room}


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
    """Raise ConfigError for a device that the installed vLLM does not compute on, or cannot choose.

    vLLM takes the first GPU that its process can see.
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


def require_executor(source: str, backend: object) -> None:
    """Raise ConfigError for an executor that does not run here; vLLM would begin to start a cluster first."""
    if backend != "ray":
        return
    from vllm.platforms import current_platform

    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            f"{source}: distributed_executor_backend: ray needs Ray; in Tutti's folder: pip install '.[ray]'."
        )
    if not current_platform.ray_device_key:
        raise ConfigError(
            f"{source}: vLLM's workers on Ray need GPUs, the installed vLLM computes on "
            f"{current_platform.device_type}; take distributed_executor_backend mp, or host ray."
        )


def on_cpu() -> bool:
    """Return whether the installed vLLM computes on the CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def lora_requests(adapters: Mapping[str, str]) -> dict[str, Any]:
    """Return vLLM's request for each adapter; ids must differ, from 1 on."""
    if not adapters:
        return {}
    from vllm.lora.request import LoRARequest

    return {name: LoRARequest(name, index, folder) for index, (name, folder) in enumerate(adapters.items(), 1)}
