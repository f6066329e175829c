"""Drafts on vLLM: rows under bitmasks with named ids, and whole answers under a constraint."""

from __future__ import annotations

import random

import numpy as np
import pytest
from transformers import LlamaConfig

pytest.importorskip("vllm")

from fusion.assembly.ensembles import build_ensemble
from fusion.core import Advance, NextTokens
from fusion.ensemble import Model
from fusion.members.hosts.inline import InlineMember
from fusion.members.transformers.engine import TransformersEngine
from fusion.members.vllm.engine import VllmEngine
from fusion.options import FusionParams
from fusion.sampling import BAN
from fusion.sequence.grammar import regex
from tests.support.constrained_prompts import constrained
from tests.support.drafted_answers import Scripted, guesses, same
from tests.support.random_models import EXACT, SHAPE, VOCABULARY, build, plain_logprobs
from tests.support.toy_fuser import DEMO

SIZES = {"dtype": "float32", "cache_tokens": 2048, "max_sequences": 4, "max_context": 256}
EAGER = {"enforce_eager": True}


def answered(engine, advance) -> NextTokens:
    engine.add([advance])
    found = []
    while engine.has_work():
        found += engine.step()
    return found[0]


@pytest.mark.parametrize("kept", [70, 5])
def test_rows_keep_to_their_bitmasks_and_name_their_ids(tmp_path, kept):
    rng, numbers = random.Random(2), np.random.default_rng(2)
    model = build(LlamaConfig(**SHAPE))
    model.save_pretrained(tmp_path)
    engine = VllmEngine.load(str(tmp_path), **SIZES, prefill_chunk=40, candidates=20, engine_args=EAGER)
    try:
        text = [rng.randrange(VOCABULARY) for _ in range(90)]
        answered(engine, Advance(1, 0, text[:80]))
        append = [*text[80:], 7, 9]
        at = [1, 4, 10]
        masks = numbers.random((4, VOCABULARY)) < 0.5
        each = numbers.integers(0, VOCABULARY, (3, 2), dtype=np.int32)
        allowed = np.packbits(masks, axis=1, bitorder="little")
        found = answered(engine, Advance(1, kept, append, "all", at, also=(3, 4), allowed=allowed, each=each))
        assert isinstance(found, NextTokens), found
        whole = text[:kept] + append
        logprobs = plain_logprobs(model, whole).numpy()
        rows = logprobs[[kept + i for i in (*at, len(append) - 1)]]
        for row, mask, ids, given in zip(rows, masks, found.ids, found.logprobs, strict=True):
            order = np.argsort(-np.where(mask, row, -np.inf), kind="stable")[:20]
            assert ids.tolist() == order.tolist()
            assert given == pytest.approx(row[order], abs=EXACT)
        assert found.each == pytest.approx(np.take_along_axis(rows[:3], each.astype(int), 1), abs=EXACT)
        assert found.named[0] == pytest.approx(rows[3][[3, 4]], abs=EXACT)
        assert found.appended_logprobs == pytest.approx(
            [row[append[i + 1]] for i, row in zip(at, rows, strict=False)], abs=EXACT
        )
    finally:
        engine.shutdown()


def test_drafts_over_both_engines_change_no_answer(tokenizers, run, monkeypatch):
    """The demo's pivot on vLLM and another member on transformers, under a grammar and biases."""
    engines = {
        "lingvo": VllmEngine.load(str(DEMO / "lingvo"), **SIZES, engine_args=EAGER),
        "almanac": TransformersEngine.load(str(DEMO / "almanac"), **SIZES),
    }
    models = {
        name: Model(InlineMember(name, engine), tokenizers[name], (tokenizers[name].hf.eos_token_id,), name)
        for name, engine in engines.items()
    }
    running = run(build_ensemble("both", models, "lingvo", defaults=FusionParams(report=True)))
    bias = {300: 2.0, 700: 1.0, 301: BAN, 302: BAN}
    cases = [
        (constrained(running, regex("[a-zA-Z0-9 ,.]{20,}( and so on[.])?"), words=["th"]), {"logit_bias": bias}),
        (running.ensemble.encode_text("Hello"), {"logit_bias": bias, "stop": ("xyz",)}),
    ]
    for prompt, more in cases:
        options = {"max_tokens": 32, "temperature": 1.0, "seed": 4, "frequency_penalty": 0.2, **more}
        plain = running.submit(prompt, **options).wait()
        for kind, guess in guesses(plain.ids, 2560).items():
            policy = Scripted(guess)
            with monkeypatch.context() as patch:
                patch.setattr("fusion.sequence.sequence.policy_of", lambda fusion, policy=policy: policy)
                drafted = running.submit(prompt, **options).wait()
            same(drafted, plain, within=EXACT)
            assert kind != "right" or sum(accepted for _, accepted in policy.went) > 5
