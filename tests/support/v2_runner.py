"""A pytest plugin: tests of the vLLM engine with vLLM's V2 model runner, on a CPU.

V2 is the default on CUDA. Its kernels are Triton's, which an interpreter runs anywhere, a hundred times slower. It
needs a wheel of 700 MB that nothing else does (the version is that of requirements/vllm-cuda.lock):

    pip install triton==3.7.1
    python -m pytest -p tests.support.v2_runner -o timeout=3600 tests/fusion/members/vllm/test_engine.py \
        tests/fusion/members/vllm/test_generation.py
"""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

os.environ |= {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}

from triton.backends import backends  # it reads the environment

# What vLLM looks for on a CPU, where it would compile; nothing is compiled here.
backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)

from vllm.v1.sample.ops import topk_topp_sampler  # noqa: E402

# The one kernel on the way that the interpreter cannot run.
topk_topp_sampler.apply_top_k_top_p_triton = topk_topp_sampler.apply_top_k_top_p_pytorch


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what starts processes, which would be without the above."""
    left_out = [item for item in items if "several_processes" in item.name]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
