"""Guidance on the demo's models against transformers' own `guidance_scale`: the same greedy tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from alignment.text.tokenizer import Tokenizer
from fusion.assembly.ensembles import build_ensemble
from fusion.assembly.views import with_views
from fusion.core import Prompt
from fusion.ensemble import Model
from fusion.loop.fuser import Fuser
from fusion.members.hosts.inline import InlineMember
from fusion.members.transformers.engine import TransformersEngine
from fusion.options import FusionParams, Guidance, Mask
from tests.support.demo import MODELS
from tests.support.toy_fuser import Running

SCALE = 1.5
TOKENS = 12
PROMPTS = [
    f"{beginning} {middle}"
    for beginning in (
        "The capital of France is",
        "Water boils when",
        "My favourite book is",
        "To bake bread you",
        "Dear",
    )
    for middle in ("a", "the", "not", "always")
]


@pytest.mark.parametrize("name", ["abacus", "lingvo"])
def test_greedy_answers_equal_transformers_guidance_scale(name):
    """Its second prompt is the last token of the first; no mask."""
    tokenizer = Tokenizer.load(str(MODELS / name))
    plain = AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32).eval()
    engine = TransformersEngine.load(str(MODELS / name), dtype="float32", cache_tokens=4096, max_sequences=40)
    end = tokenizer.hf.eos_token_id
    base = Model(InlineMember("base", engine), tokenizer, (end,), "base")
    single = build_ensemble("one", {"base": base}, "base")
    fusion = FusionParams(guidance=Guidance(SCALE, negative="x"), mask=Mask(off=True))
    viewed, fusion = with_views(single, fusion)
    fuser = Fuser({"base": base.member})
    fuser.start()
    try:
        running = Running(fuser, replace(viewed))
        listeners = []
        for text in PROMPTS:
            ids = tokenizer.encode(text, add_special_tokens=False)
            prompt = Prompt({"base": ids, "base/negative": ids[-1:]}, {"base": b"", "base/negative": b""})
            listeners.append(running.submit(prompt, fusion, max_tokens=TOKENS, ignore_eos=True))
        for text, listener in zip(PROMPTS, listeners, strict=True):
            ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
            expected = plain.generate(
                ids,
                max_new_tokens=TOKENS,
                min_new_tokens=TOKENS,
                do_sample=False,
                guidance_scale=SCALE,
                pad_token_id=end,
            )[0, ids.shape[1] :].tolist()
            assert listener.wait().last.error is None
            assert listener.ids == expected, text
    finally:
        fuser.stop()
