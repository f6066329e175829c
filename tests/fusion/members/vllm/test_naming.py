"""vLLM gives log-probabilities of named ids, and the best among allowed ones, as the other engine does."""

from types import SimpleNamespace

import pytest
from transformers import LlamaConfig

from tests.support.named_ids import require_named_ids
from tests.support.random_models import SHAPE, build

pytest.importorskip("vllm")

from fusion.members.vllm.engine import VllmEngine
from fusion.members.vllm.naming import wrap_sampler


def test_a_stage_of_a_pipeline_without_a_sampler_stays_without():
    """The V2 runner has one in the last stage only, and asks whether it is there."""
    runner = SimpleNamespace(sampler=None)
    wrap_sampler(runner, {})
    assert runner.sampler is None


@pytest.mark.parametrize("k", [2, 5])
def test_named_ids_and_limits(k, tmp_path):
    model = build(LlamaConfig(**SHAPE))
    model.save_pretrained(tmp_path)
    engine = VllmEngine.load(
        str(tmp_path),
        dtype="float32",
        cache_tokens=640,
        max_sequences=6,
        max_context=200,
        prefill_chunk=40,
        candidates=k,
        engine_args={"enforce_eager": True},
    )
    try:
        require_named_ids(model, engine, k)
    finally:
        engine.shutdown()
