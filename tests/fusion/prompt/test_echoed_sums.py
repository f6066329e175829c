"""Echo of a sum of log-probabilities, against whole distributions one position at a time."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.arithmetic import combine
from fusion.assembly.ensembles import build_ensemble
from fusion.options import Contrast, FusionParams, Mask
from tests.support.toy_fuser import toy_model
from tests.support.weighted_prompts import QUESTION, TALK


@pytest.mark.parametrize("k", [60, 10_000])
@pytest.mark.parametrize("mask", [Mask(off=True), Mask(plausibility=0.2)])
def test_every_token_of_the_prompt_has_the_sums_own_probability(tokenizers, run, k, mask):
    tokenizer = tokenizers["almanac"]
    models = {name: toy_model(tokenizer, name, seed=seed) for seed, name in enumerate(("expert", "amateur"))}
    size = tokenizer.vocabulary_size
    for model in models.values():
        model.member.k = min(k, size)
    ensemble = build_ensemble("pair", models, "expert")
    prompt = ensemble.encode_text(QUESTION, locate=True)
    fusion = FusionParams(contrast=Contrast("amateur", beta=0.5), mask=mask)
    listener = run(ensemble).submit(prompt, fusion, max_tokens=2, prompt_logprobs=2).wait()
    assert listener.last.error is None
    ids = prompt.ids["expert"]
    echoed = [token for update in listener.updates for token in update.prompt]
    assert [token.chosen.id for token in echoed] == ids
    assert np.isnan(echoed[0].chosen.logprob)
    for at, token in enumerate(echoed[1:], 1):
        rows = np.stack([models[name].member.distribution(ids[:at]) for name in models])
        if mask.off and k < size:  # the pivot's best tokens, and the one that did come
            outside = np.ones(size, bool)
            outside[np.argsort(-rows[0], kind="stable")[:k]] = False
            outside[ids[at]] = False
            rows[:, outside] = -1e9
        where = None if mask.off else ("plausibility", 0, mask.plausibility)
        expected = combine(rows[None], [1.5, -0.5], mask=where)[0]
        if expected[ids[at]] > 0:
            assert token.chosen.logprob == pytest.approx(np.log(expected[ids[at]]), abs=1e-4)
        else:
            assert token.chosen.logprob == -np.inf
        assert token.top[0].id == expected.argmax()


def test_a_special_token_has_the_sum_of_members_with_its_tokenizer(tokenizers, run):
    kinds = {"expert": "almanac", "amateur": "almanac", "other": "lingvo"}
    models = {
        name: toy_model(tokenizers[kind], name, seed=seed) for seed, (name, kind) in enumerate(kinds.items())
    }
    for model in models.values():
        model.member.k = model.tokenizer.vocabulary_size
    ensemble = build_ensemble("trio", models, "expert")
    prompt = ensemble.encode_chat(TALK, locate=True)
    contrast = FusionParams(
        contrast=Contrast("amateur", beta=0.5), mask=Mask(off=True), members=("expert", "amateur")
    )
    summed = FusionParams(combine="arithmetic", mask=Mask(off=True), weights={"expert": 1.5, "other": -0.5})
    for fusion, weights in ((contrast, [1.5, -0.5]), (summed, [1.0, 0.0])):
        echoed = run(ensemble).submit(prompt, fusion, max_tokens=1, prompt_logprobs=1).wait().updates[0].prompt
        ids = prompt.ids["expert"]
        for at in range(1, len(ids)):
            if ids[at] in (3, 4):
                rows = np.stack([models[name].member.distribution(ids[:at]) for name in ("expert", "amateur")])
                expected = combine(rows[None], weights)[0]
                assert echoed[at].chosen.logprob == pytest.approx(np.log(expected[ids[at]]), abs=1e-4)
        assert np.isfinite([token.chosen.logprob for token in echoed[1:]]).all()
