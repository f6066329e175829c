"""Fused log-probabilities of a prompt's own tokens, against whole distributions one position at a time."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.assembly.ensembles import build_ensemble
from fusion.options import FusionParams
from tests.support.toy_fuser import toy_ensemble, toy_model
from tests.support.weighted_prompts import QUESTION, dense, weighted

TEXT = QUESTION + " Caféterias, 你好 🎉 and 12345 words."


def everything(ensemble):
    """Let every member hand over all of its tokens, so that a plain computation knows no less."""
    for model in ensemble.models.values():
        model.member.k = model.tokenizer.vocabulary_size
    return ensemble


def plain_echo(ensemble, prompt, weights):
    """By position of the pivot: who votes, and the fused distribution."""
    places = {name: dict(zip(*prompt.located[name].boundaries(0), strict=True)) for name in ensemble.models}
    place_of = {token: place for place, token in places[ensemble.pivot].items()}
    for at in range(len(prompt.ids[ensemble.pivot]) - 1):
        own = {ensemble.pivot: at}
        for name in ensemble.models:
            place = place_of.get(at)
            if (
                name != ensemble.pivot
                and place in places[name]
                and places[name][place] + 1 < len(prompt.ids[name])
            ):
                own[name] = places[name][place]
        total = sum(weights[name] for name in own)
        fused = sum(weights[name] / total * dense(ensemble, prompt, name, i + 1) for name, i in own.items())
        yield set(own), fused


@pytest.mark.parametrize("pivot", ["almanac", "abacus", "lingvo"])
def test_each_token_of_the_prompt_is_scored_by_the_members_that_begin_there(tokenizers, run, pivot):
    ensemble = everything(toy_ensemble(tokenizers, pivot=pivot))
    running = run(ensemble)
    weights = {"almanac": 0.5, "abacus": 0.3, "lingvo": 0.2}
    prompt = ensemble.encode_text(TEXT, locate=True)
    listener = running.submit(prompt, FusionParams(weights=weights), max_tokens=2, prompt_logprobs=3).wait()
    echoed = listener.updates[0].prompt
    ids = prompt.ids[pivot]
    assert [token.chosen.id for token in echoed] == ids
    assert np.isnan(echoed[0].chosen.logprob)
    assert not any(update.prompt for update in listener.updates[1:])
    voters = []
    for token, label, (names, fused) in zip(
        echoed[1:], ids[1:], plain_echo(ensemble, prompt, weights), strict=True
    ):
        voters.append(names)
        assert token.chosen.logprob == pytest.approx(np.log(fused[label]), abs=2e-4)
        best = np.argsort(-fused, kind="stable")[:3]
        assert [entry.logprob for entry in token.top] == pytest.approx(np.log(fused[best]).tolist(), abs=2e-4)
    assert {1, 3} <= set(map(len, voters)), "some positions are everybody's, some the pivot's alone"


def test_a_token_beyond_the_best_is_known_all_the_same(tokenizers, run):
    """Members hand over few tokens, but of their own next one they know the probability."""
    tokenizer = tokenizers["lingvo"]
    models = {name: toy_model(tokenizer, name, seed=seed) for name, seed in (("a", 3), ("b", 4))}
    for model in models.values():
        model.member.k = 2
    running = run(build_ensemble("pair", models, "a"))
    prompt = running.ensemble.encode_text(TEXT, locate=True)
    ids = prompt.ids["a"]
    echoed = running.submit(prompt, max_tokens=1, prompt_logprobs=1).wait().updates[0].prompt
    for at, token in enumerate(echoed[1:]):
        each = [np.exp(float(model.member.distribution(ids[: at + 1])[ids[at + 1]])) for model in models.values()]
        assert token.chosen.logprob == pytest.approx(np.log(np.mean(each)), abs=1e-4)


def test_a_single_model_echoes_its_own_probabilities(tokenizers, run):
    model = toy_model(tokenizers["abacus"], "abacus", seed=3)
    running = run(build_ensemble("one", {"abacus": model}, "abacus"))
    ids = tokenizers["abacus"].encode("one two three", add_special_tokens=True)
    prompt = running.ensemble.encode_ids(ids)
    plain = running.submit(prompt, max_tokens=9).wait()
    listener = running.submit(prompt, max_tokens=9, prompt_logprobs=0).wait()
    assert listener.ids == plain.ids
    for at, token in enumerate(listener.updates[0].prompt[1:]):
        assert token.chosen.logprob == pytest.approx(
            model.member.distribution(ids[: at + 1])[ids[at + 1]], abs=1e-5
        )
        assert token.top == ()


def test_an_echo_uses_the_weights_that_the_prompt_was_given(tokenizers, run):
    ensemble = everything(toy_ensemble(tokenizers, pivot="lingvo"))
    running = run(ensemble)
    prompt = ensemble.encode_text(QUESTION, locate=True)
    listener = running.submit(prompt, weighted("packllm-opt"), max_tokens=2, prompt_logprobs=0).wait()
    weights = listener.last.weighting.weights
    apart = running.submit(prompt, weighted("packllm-opt"), max_tokens=2).wait()
    assert weights == pytest.approx(apart.last.weighting.weights)
    echoed = listener.updates[0].prompt[1:]
    for token, (names, fused) in zip(echoed, plain_echo(ensemble, prompt, weights), strict=True):
        if sum(weights[name] for name in names) > 0:
            assert token.chosen.logprob == pytest.approx(np.log(fused[token.chosen.id]), abs=2e-4)


def test_a_prompt_of_one_token_has_nothing_to_predict(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    prompt = running.ensemble.encode_ids([300], locate=True)
    [token] = running.submit(prompt, max_tokens=1, prompt_logprobs=1).wait().updates[0].prompt
    assert np.isnan(token.chosen.logprob)
