"""What keeps a vLLM engine from starting is said in one sentence that names the model and what to change."""

import importlib.util
import json
import re

import pytest
from transformers import LlamaConfig

from alignment.errors import ConfigError
from fusion.members.vllm.engine import VllmEngine
from fusion.members.vllm.hints import explained
from fusion.members.vllm.options import ENVIRONMENT, quiet
from tests.support.random_models import SHAPE, build


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    build(LlamaConfig(**SHAPE)).save_pretrained(path)
    return str(path)


def refusal(folder, *, engine_args=None, **options):
    engine_args = {"enforce_eager": True} | (engine_args or {})
    with pytest.raises(ConfigError) as caught:
        VllmEngine.load(folder, dtype="float32", engine_args=engine_args, **options)
    text = str(caught.value)
    assert text.startswith(folder)
    assert "\n" not in text
    return text.removeprefix(folder)


def test_without_vllm(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert (
        refusal(folder) == " is to run on vLLM, which is not installed; in Tutti's folder: pip install '.[vllm]'."
    )


def test_nobody_is_told_and_nothing_is_compiled_by_nvcc_unless_the_environment_says_so(monkeypatch):
    envs = pytest.importorskip("vllm.envs")
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with quiet():
        pass
    assert envs.VLLM_NO_USAGE_STATS is True
    assert envs.VLLM_USE_FLASHINFER_SAMPLER is False
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "0")
    with quiet():
        pass
    assert envs.VLLM_NO_USAGE_STATS is False


def test_with_another_vllm(folder, monkeypatch):
    vllm = pytest.importorskip("vllm")
    monkeypatch.setattr(vllm, "__version__", "0.41.2")
    monkeypatch.setattr(vllm, "__version_tuple__", (0, 41, 2))
    with pytest.raises(ConfigError) as caught:
        VllmEngine.load(folder)
    assert str(caught.value) == (
        "vLLM 0.41.2 is installed, Tutti was tried with 0.32 to below 0.34; install vllm==0.32.*."
    )


# By name: what is given, and what the sentence after the model's name begins with.
MISTAKES = {
    "unknown argument": (
        {"engine_args": {"gpu_util": 1}},
        "vLLM has no engine argument gpu_util; see `vllm serve --help`.",
    ),
    "argument with a name of its own": (
        {"engine_args": {"max_model_len": 9}},
        "engine_args.max_model_len is set by max_context; give that instead.",
    ),
    "argument that fusion depends on": (
        {"engine_args": {"async_scheduling": True}},
        "engine_args.async_scheduling is not free: fusion depends on it; leave it out.",
    ),
    "drafts of vLLM's own": (
        {"engine_args": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}},
        "engine_args.speculative_config is not free: fusion depends on it; leave it out.",
    ),
    "drafts by their short names": (
        {"engine_args": {"spec_method": "ngram"}},
        "engine_args.spec_method is not free: fusion depends on it; leave it out.",
    ),
    "a connector of the cache": (
        {"engine_args": {"kv_offloading_size": 4.0}},
        "engine_args.kv_offloading_size is not free: fusion depends on it; leave it out.",
    ),
    "value that vLLM refuses": (
        {"engine_args": {"block_size": -5}},
        r"vLLM cannot start it \(block_size: .*\): correct its engine_args",
    ),
    "a value of another type": (
        {"engine_args": {"block_size": "big", "tensor_parallel_size": "two"}},
        r"vLLM cannot start it \((block_size|tensor_parallel_size): .*valid integer.*\): correct its engine_args",
    ),
    "heads that do not divide": (
        {"engine_args": {"tensor_parallel_size": 3}},
        r"vLLM cannot start it \(.*divisible by tensor parallel size.*\): take a tensor_parallel_size that",
    ),
    "too little memory": (
        {"engine_args": {"kv_cache_memory_bytes": 10**15}},
        r"vLLM cannot start it \(Available memory .*\): free the device, or lower what engine_args ask",
    ),
    "more context than the model has": (
        {"max_context": 5000},
        r"vLLM cannot start it \(.*max_model_len.*\): lower max_context",
    ),
    "a cache smaller than a sequence": (
        {"max_context": 200, "cache_tokens": 32},
        r"vLLM cannot start it \(.*KV cache.*\): raise cache_tokens, or what engine_args",
    ),
    "workers on Ray without a GPU": (
        {"engine_args": {"distributed_executor_backend": "ray"}},
        "vLLM's workers on Ray need GPUs, the installed vLLM computes on cpu; take distributed_executor_back",
    ),
    "a quantization for other types": (
        {"engine_args": {"quantization": "fp8"}},
        r"vLLM cannot start it \(torch.float32 is not supported for quantization.*\): set another dtype",
    ),
    "replicas, which are the server's": (
        {"engine_args": {"data_parallel_size": 2}},
        "engine_args.data_parallel_size is not free: fusion depends on it; leave it out.",
    ),
    "a device of another vLLM": (
        {"device": "cuda:0"},
        "the installed vLLM computes on cpu; set device: cpu, or install the vLLM of that device.",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_will_not_do(folder, name):
    pytest.importorskip("vllm")
    options, expected = MISTAKES[name]
    text = refusal(folder, **options)
    assert re.match(": " + expected, text), text


# What does not happen here, as vLLM 0.32, torch and CUDA word it, and what the user is told to change.
WORDS = {
    "a GPU that is taken": (
        "Free memory on device cuda:0 (1.95/79.19 GiB) on startup is less than desired GPU memory utilization "
        "(0.92, 72.85 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
        "free the device, or lower what engine_args ask of its memory.",
    ),
    "weights that do not fit": (
        "CUDA out of memory. Tried to allocate 1002.00 MiB. GPU 0 has a total capacity of 23.64 GiB of which "
        "512.06 MiB is free.",
        "free the device, lower cache_tokens or what engine_args ask of its memory, or take more devices.",
    ),
    "a share that the weights fill": (
        "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the "
        "engine.",
        "raise gpu_memory_utilization, or take more devices or a quantised checkpoint.",
    ),
    "a cache smaller than a sequence": (
        "To serve at least one request with the model's max seq len (131072), (16.0 GiB KV cache is needed, which "
        "is larger than the available KV cache memory (9.4 GiB). Try increasing `gpu_memory_utilization`.",
        "raise cache_tokens, or what engine_args give the cache, or lower max_context.",
    ),
    "others that come and go": (
        "Error in memory profiling. Initial free memory 70.1 GiB, current free memory 74.6 GiB. This happens when "
        "other processes sharing the same container release GPU memory while vLLM is profiling.",
        "start it again while nobody else takes or frees memory there, or size its cache by cache_tokens.",
    ),
    "fewer GPUs than ranks": (
        "World size (4) is larger than the number of available GPUs (2) in this node.",
        "give it as many devices as its parallel sizes multiply to.",
    ),
    "fewer GPUs than ranks, told by a rank": (
        "DP adjusted local rank 1 is out of bounds for 1 devices.",
        "give it as many devices as its parallel sizes multiply to.",
    ),
    "a GPU for one process at a time": (
        "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
        "free the GPU, or name one that its process can see (device, CUDA_VISIBLE_DEVICES).",
    ),
    "no GPU to be seen": (
        "No CUDA GPUs are available",
        "free the GPU, or name one that its process can see (device, CUDA_VISIBLE_DEVICES).",
    ),
    "a GPU without the kernels": (
        "The quantization method fp8 is not supported for the current GPU. Minimum capability: 75. Current "
        "capability: 70.",
        "take a quantization that vLLM has for this device, or none.",
    ),
    "a vLLM without the kernels": (
        "_C::static_scaled_fp8_quant() expected at most 0 argument(s) but received 4 argument(s). Declaration: "
        "_C::static_scaled_fp8_quant() -> ()",
        "take a quantization that vLLM has for this device, or none.",
    ),
    "a GPU without the type": (
        "Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU has "
        "compute capability 7.5. You can use float16 instead by explicitly setting the `dtype` flag in CLI.",
        "set another dtype, or another kv_cache_dtype.",
    ),
}


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("by", ["the engine", "a worker"])
def test_what_a_device_objects_to(name, by):
    words, advice = WORDS[name]
    told = words
    if by == "a worker":
        told = f"Worker failed with error '{words}', please check the stack trace above for the root cause"
    with pytest.raises(ConfigError) as caught, explained("models/llama"):
        raise RuntimeError(told)
    assert str(caught.value).startswith(f"models/llama: vLLM cannot start it ({words[:50]}")
    assert str(caught.value).endswith(f"): {advice}")


def test_a_model_whose_cache_is_sized_does_not_ask_for_a_whole_gpu(folder):
    """vLLM refuses a GPU of which 0.92 are not free, even where it is told how large the cache is to be."""
    pytest.importorskip("vllm")
    from fusion.members.vllm.options import Options, arguments

    def share(**given):
        return arguments(Options(folder, engine_args=given)).get("gpu_memory_utilization")

    assert share() < 0.05
    assert share(kv_cache_memory_bytes=10**9) < 0.05
    assert share(gpu_memory_utilization=0.5) == 0.5
    assert share(gpu_memory_utilization=0.5, kv_cache_memory_bytes=10**9) == 0.5


def test_an_architecture_that_vllm_does_not_know(tmp_path):
    pytest.importorskip("vllm")
    build(LlamaConfig(**SHAPE)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchForCausalLM"]}))
    text = refusal(str(tmp_path))
    assert re.match(
        r": vLLM cannot start it \(.*\): take a model that vLLM supports, or the transformers engine", text
    ), text


def test_the_class_of_a_model_is_read_without_another_process(folder, monkeypatch):
    """On a CPU; vLLM starts one, which imports vLLM itself, for each architecture it has not met."""
    pytest.importorskip("vllm")
    from vllm.model_executor.models import registry

    from fusion.members.vllm.options import Options, configured

    def start(*command, **options):
        raise AssertionError(command)

    read = []
    registry._try_inspect_model_cls.cache_clear()
    monkeypatch.setattr(registry._LazyRegisteredModel, "_load_modelinfo_from_cache", lambda *hash: None)
    monkeypatch.setattr(
        registry._LazyRegisteredModel, "_save_modelinfo_to_cache", lambda model, *info: read.append(model)
    )
    monkeypatch.setattr(registry.subprocess, "run", start)
    configured(Options(folder, dtype="float32", cache_tokens=1024))
    assert "LlamaForCausalLM" in {model.class_name for model in read}
