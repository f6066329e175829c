"""What keeps a vLLM engine from starting is said in one sentence that names the model and what to change."""

import importlib.util
import json
import re

import pytest
from transformers import LlamaConfig

from alignment.errors import ConfigError
from fusion.members.vllm_engine import VllmEngine
from tests.fusion.members.test_vllm_engine import SHAPE
from tests.fusion.members.tiny import build


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
    assert refusal(folder) == " is to run on vLLM, which is not installed; pip install 'tutti[vllm]'."


def test_with_another_vllm(folder, monkeypatch):
    vllm = pytest.importorskip("vllm")
    monkeypatch.setattr(vllm, "__version__", "0.41.2")
    monkeypatch.setattr(vllm, "__version_tuple__", (0, 41, 2))
    with pytest.raises(ConfigError) as caught:
        VllmEngine.load(folder)
    assert str(caught.value) == (
        "vLLM 0.41.2 is installed, Tutti was tried with 0.32 to below 0.33; install vllm==0.32.*."
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
        r"vLLM cannot start it \(.*KV cache.*\): raise cache_tokens or lower max_context",
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


def test_an_architecture_that_vllm_does_not_know(tmp_path):
    pytest.importorskip("vllm")
    build(LlamaConfig(**SHAPE)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchForCausalLM"]}))
    text = refusal(str(tmp_path))
    assert re.match(
        r": vLLM cannot start it \(.*\): take a model that vLLM supports, or engine: transform", text
    ), text
