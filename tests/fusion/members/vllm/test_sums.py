"""Sums of log-probabilities over views of a model on vLLM, against the same on transformers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("vllm")

from fusion.assembly.ensembles import build_ensemble
from fusion.assembly.views import with_views
from fusion.ensemble import Model
from fusion.loop.fuser import Fuser
from fusion.members.hosts.inline import InlineMember
from fusion.members.transformers.engine import TransformersEngine
from fusion.members.vllm.engine import VllmEngine
from fusion.options import Contrast, FusionParams, Guidance, Mask
from fusion.views import ModelView
from tests.support.random_models import EXACT
from tests.support.toy_fuser import DEMO, Running

SIZES = {"dtype": "float32", "cache_tokens": 2048, "max_sequences": 4, "max_context": 256}
ADAPTERS = {"facts": str(DEMO.parent / "adapters" / "facts")}
QUESTION = "What do you use to cut paper?"
SUMS = {
    "contrast": FusionParams(contrast=Contrast("lingvo"), report=True),
    "no mask": FusionParams(contrast=Contrast("lingvo"), mask=Mask(off=True), report=True),
    "guided": FusionParams(guidance=Guidance(1.5, negative="Be rude."), mask=Mask(top_k=9), report=True),
}


@pytest.fixture(scope="module")
def pairs(tokenizers):
    """The model and the model under its adapter, as an ensemble on each engine, and what runs both."""
    engines = {
        "vllm": VllmEngine.load(
            str(DEMO / "lingvo"), **SIZES, adapters=ADAPTERS, engine_args={"enforce_eager": True}
        ),
        "transformers": TransformersEngine.load(str(DEMO / "lingvo"), **SIZES, adapters=ADAPTERS),
    }
    pairs, tokenizer = {}, tokenizers["lingvo"]
    for kind, engine in engines.items():
        model = Model(InlineMember(kind, engine), tokenizer, (tokenizer.hf.eos_token_id,), "lingvo")
        views = (ModelView("expert", adapter="facts"), ModelView("lingvo"))
        pairs[kind] = build_ensemble("pair", {view.name: replace(model, view=view) for view in views}, "expert")
    fuser = Fuser({kind: pair.models["expert"].member for kind, pair in pairs.items()})
    fuser.start()
    yield fuser, pairs
    fuser.stop()


def tokens_of(updates):
    return [token for update in updates for token in update.tokens]


@pytest.mark.parametrize("fusion", SUMS.values(), ids=SUMS)
def test_answers_and_echo_are_those_of_the_other_engine(pairs, fusion):
    answers, echoes = {}, {}
    fuser, ensembles = pairs
    for kind, pair in ensembles.items():
        ensemble, options = with_views(pair, fusion)
        running = Running(fuser, ensemble)
        prompt = ensemble.encode_chat([{"role": "user", "content": QUESTION}])
        answers[kind] = running.submit(prompt, options, max_tokens=12, logprobs=3, ignore_eos=True).wait()
        if fusion.guidance is None:
            text = ensemble.encode_text("Paper is cut with scissors.", locate=True)
            echoes[kind] = running.submit(text, options, max_tokens=1, prompt_logprobs=2).wait()
    ours, theirs = (tokens_of(answers[kind].updates) for kind in ("vllm", "transformers"))
    assert answers["vllm"].last.error is None
    assert {len(round.weights) for round in answers["vllm"].last.rounds} == {2 if fusion.guidance is None else 4}
    same(ours, theirs)
    if echoes:
        assert echoes["vllm"].last.error is None
        ours, theirs = ([t for u in echoes[kind].updates for t in u.prompt] for kind in ("vllm", "transformers"))
        assert len(ours) > 4
        same(ours[1:], theirs[1:])


def same(ours, theirs):
    assert [token.chosen.id for token in ours] == [token.chosen.id for token in theirs]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.chosen.logprob, other.chosen.logprob, rtol=0, atol=EXACT)
        for mine, yours in zip(one.top, other.top, strict=True):
            np.testing.assert_allclose(mine.logprob, yours.logprob, rtol=0, atol=EXACT)
