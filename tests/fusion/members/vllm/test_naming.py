"""vLLM gives log-probabilities of named ids, and the best among allowed ones, as the other engine does."""

import signal
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

from tests.support.named_ids import require_named_ids
from tests.support.random_models import SHAPE, build

pytest.importorskip("vllm")

from vllm.v1.outputs import LogprobsTensors

from fusion.members.vllm import core
from fusion.members.vllm.core import SessionWorker
from fusion.members.vllm.engine import VllmEngine
from fusion.members.vllm.naming import completed, wrap_sampler


def test_a_stage_of_a_pipeline_without_a_sampler_stays_without():
    """The V2 runner has one in the last stage only, and asks whether it is there."""
    runner = SimpleNamespace(sampler=None)
    wrap_sampler(runner, {})
    assert runner.sampler is None


def test_a_row_that_is_kept_holds_no_other_rows_of_its_step():
    told = LogprobsTensors(torch.zeros(4, 3, dtype=torch.int32), torch.zeros(4, 3), torch.zeros(4))
    raw, kept = torch.randn(2, 50), {}
    completed(SimpleNamespace(logprobs_tensors=told), raw, {1: {"k": 2, "kept": 7}, 3: {"k": 2}}, kept)
    assert torch.equal(kept[7], torch.log_softmax(raw, -1)[0])
    assert kept[7].untyped_storage().nbytes() == 50 * 4


@pytest.mark.parametrize("child", [True, False])
def test_signals_for_the_servers_group_do_not_reach_vllms_own_workers(monkeypatch, child):
    """Of vLLM's processes only: the server and workers of its own have their own way with signals."""
    monkeypatch.setattr(core, "wrap_sampler", lambda *args: None)
    monkeypatch.setattr(core, "wrap_scoring", lambda *args: None)
    monkeypatch.setattr(core.multiprocessing, "parent_process", lambda: child or None)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    try:
        worker = SessionWorker()
        worker.model_runner = None
        worker.name_ids()
        assert all((signal.getsignal(number) == signal.SIG_IGN) == child for number in numbers)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


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
