"""The vLLM engine: sequences as resumable requests of an engine core."""

from fusion.members.engine import EngineKind

KIND = EngineKind(
    load="fusion.members.vllm.engine:VllmEngine.load",
    options=("engine_args",),
    sizes_cache=frozenset({"gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override"}),
    refusals="fusion.members.vllm.validate:refusals",
    changes_transformers=True,
)
