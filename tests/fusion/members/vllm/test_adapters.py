"""Several adapters in one engine of vLLM's against peft, one adapter at a time."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig

from fusion.core import Advance
from tests.support.random_models import RANKS_AND_ALPHAS, SHAPE, VOCABULARY, build, plain_logprobs, run

pytest.importorskip("vllm")

from fusion.members.vllm.engine import VllmEngine

EXACT = 1e-5
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "all": LoraConfig(r=4, lora_alpha=8, target_modules=LINEAR, init_lora_weights=False),
    "rslora": LoraConfig(r=4, lora_alpha=8, target_modules=LINEAR, use_rslora=True, init_lora_weights=False),
    "patterns": LoraConfig(**RANKS_AND_ALPHAS),
    "qv": LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
}
NAMES = [*ADAPTERS, None]
PROMPTS = {name: random.Random(str(name)).choices(range(VOCABULARY), k=9) for name in NAMES}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The engine, and by adapter the log-probabilities of its prompt at all positions."""
    folder = tmp_path_factory.mktemp("adapters")
    config = LlamaConfig(**SHAPE)
    build(config).save_pretrained(folder / "base")
    expected = {None: plain_logprobs(build(config), PROMPTS[None])}
    for seed, (name, adapter) in enumerate(ADAPTERS.items()):
        torch.manual_seed(seed)
        model = get_peft_model(build(config), adapter)
        model.save_pretrained(folder / name)
        expected[name] = plain_logprobs(model, PROMPTS[name])
    engine = VllmEngine.load(
        str(folder / "base"),
        dtype="float32",
        cache_tokens=640,
        max_context=200,
        candidates=VOCABULARY,
        engine_args={"enforce_eager": True},
        adapters={name: str(folder / name) for name in ADAPTERS},
    )
    yield engine, expected
    engine.shutdown()


def last(answer):
    row = np.empty(VOCABULARY, np.float32)
    row[answer.ids[-1]] = answer.logprobs[-1]
    return row


def test_sequences_of_one_step_run_with_their_own_adapters(site):
    engine, expected = site
    answers = run(engine, *(Advance(i, 0, PROMPTS[name], adapter=name) for i, name in enumerate(NAMES)))
    for i, name in enumerate(NAMES):
        np.testing.assert_allclose(last(answers[i]), expected[name][-1], rtol=0, atol=EXACT)
    engine.close(range(len(NAMES)))


def test_a_sequence_without_an_adapter_is_the_bare_model_whoever_is_loaded(site):
    engine, expected = site
    for at, kept in ((8, 0), (9, 8)):  # its prompt, and one token more
        answers = run(engine, Advance(1, kept, PROMPTS[None][kept:at]))
        np.testing.assert_allclose(last(answers[1]), expected[None][at - 1], rtol=0, atol=EXACT)
    engine.close([1])


def test_tokens_that_were_taken_back_leave_nothing_under_any_adapter(site):
    engine, expected = site
    run(engine, *(Advance(i, 0, [*PROMPTS[name][:4], 5, 6], adapter=name) for i, name in enumerate(NAMES)))
    for at in range(4, 9):
        steps = (Advance(i, at, [PROMPTS[name][at]], adapter=name) for i, name in enumerate(NAMES))
        answers = run(engine, *steps)
        for i, name in enumerate(NAMES):
            np.testing.assert_allclose(last(answers[i]), expected[name][at], rtol=0, atol=EXACT)
    engine.close(range(len(NAMES)))
