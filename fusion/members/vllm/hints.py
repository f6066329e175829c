"""Hints: vLLM's errors at start as one sentence that says what to change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pydantic

from alignment.errors import ConfigError, one_line


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
        if from_worker := re.match(r"Worker failed with error '(.*)', please check", text, re.DOTALL):
            text = from_worker[1]
        hints = (hint for pattern, hint in HINTS if re.search(pattern, text, re.IGNORECASE))
        advice = next(hints, "see the log above")
    return f"vLLM cannot start it ({one_line(text.removeprefix('Value error, '), 300)}): {advice}."


# What vLLM, torch and CUDA say, the first that fits, and what to do about it.
HINTS = (
    (r"divisible by tensor parallel", "take a tensor_parallel_size that divides its heads"),
    (
        r"world size|out of bounds for \d+ device|device ordinal",
        "give it as many devices as its parallel sizes multiply to",
    ),
    (
        r"error in memory profiling",
        "start it again while nobody else takes or frees memory there, or size its cache by cache_tokens",
    ),
    (
        r"no available memory for the cache",
        "raise gpu_memory_utilization, or take more devices or a quantised checkpoint",
    ),
    (
        r"KV cache is needed|max seq len|larger than the available KV cache",
        "raise cache_tokens, or what engine_args give the cache, or lower max_context",
    ),
    (
        r"out of memory|not enough GPU memory",
        "free the device, lower cache_tokens or what engine_args ask of its memory, or take more devices",
    ),
    (r"free memory|available memory", "free the device, or lower what engine_args ask of its memory"),
    (
        r"busy or unavailable|no CUDA GPUs|no CUDA-capable|driver|NVML",
        "free the GPU, or name one that its process can see (device, CUDA_VISIBLE_DEVICES)",
    ),
    (
        r"architectures?.*not supported|no module or model",
        "take a model that vLLM supports, or the transformers engine",
    ),
    (r"max_model_len|max seq", "lower max_context"),
    (r"bfloat16|float16|dtype", "set another dtype, or another kv_cache_dtype"),
    (r"quantiz|fp8|\bawq|gptq|\b_C\b", "take a quantization that vLLM has for this device, or none"),
    (r"missing keys", "save the checkpoint again with what it lacks, or take another load_format"),
    (r"LoRA|adapter", "give another adapter, or raise max_lora_rank in engine_args"),
    (
        r"NUMA|bind threads",
        "set VLLM_CPU_OMP_THREADS_BIND for its process, or lower its parallel sizes",
    ),
)
