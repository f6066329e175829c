"""Weights measured on the prompt, against a plain computation from the members' whole distributions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.text.boundaries import shared_boundaries
from fusion.assembly.ensembles import build_ensemble, build_for_any_pivot
from fusion.options import FusionParams
from fusion.prompt.weighing import prune
from fusion.weights import packllm_sim
from tests.support.toy_fuser import teach, toy_ensemble, toy_model
from tests.support.weighted_prompts import QUESTION, TALK, chat, completed, dense, report_of, weighted


def plain_losses(ensemble, prompt, texts=None):
    """By member the nats on the shared text, and the tokens of that; each token in a forward pass of its own."""
    nats, tokens = dict.fromkeys(ensemble.models, 0.0), dict.fromkeys(ensemble.models, 0)
    for text in range(len(prompt.located[ensemble.pivot].texts)) if texts is None else texts:
        for name, before in shared_boundaries(prompt.located, text).items():
            ids = prompt.ids[name]
            for at in range(before[0] + 1, before[-1] + 1) if len(before) > 1 else ():
                nats[name] -= float(ensemble.models[name].member.distribution(ids[:at])[ids[at]])
                tokens[name] += 1
    return nats, tokens


@pytest.mark.parametrize("pivot", ["almanac", "abacus", "lingvo"])
def test_sim_weighs_by_the_perplexity_of_the_shared_text(tokenizers, run, pivot):
    running = run(toy_ensemble(tokenizers, pivot=pivot))
    prompt = chat(running.ensemble, TALK)
    report = report_of(running, prompt, weighted("packllm-sim", temperature=0.5, positions=10_000))
    nats, tokens = plain_losses(running.ensemble, prompt)
    losses = {name: nats[name] / tokens[pivot] for name in nats}
    assert report.perplexity == pytest.approx({name: np.exp(loss) for name, loss in losses.items()}, rel=1e-4)
    expected = packllm_sim(list(losses.values()), 0.5)
    assert list(report.weights.values()) == pytest.approx(expected.tolist(), abs=1e-5)
    assert (report.method, report.tokens, report.notes) == ("packllm-sim", tokens[pivot], ())
    assert report.tokens > 40


def test_losses_can_be_counted_per_own_token(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    prompt = chat(running.ensemble)
    report = report_of(running, prompt, weighted("packllm-sim", normalize=False))
    nats, tokens = plain_losses(running.ensemble, prompt)
    assert report.perplexity == pytest.approx({n: np.exp(nats[n] / tokens[n]) for n in nats}, rel=1e-4)


@pytest.mark.parametrize("combine", ["mixture", "product"])
def test_opt_optimises_the_fusion_that_decoding_uses(tokenizers, run, combine):
    ensemble = toy_ensemble(tokenizers, pivot="lingvo")
    prompt = chat(ensemble)
    teach(ensemble.models["abacus"], prompt.ids["abacus"], 3.0)
    for model in ensemble.models.values():  # every token is handed over, so the plain computation knows no less
        model.member.k = model.tokenizer.vocabulary_size
    running = run(ensemble)
    fusion = replace(weighted("packllm-opt", coinciding=2), combine=combine, unmapped="pivot")
    report = report_of(running, prompt, fusion)
    before = shared_boundaries(prompt.located, 0)
    labels = [prompt.ids["lingvo"][at + 1] for at in before["lingvo"][:-1]]
    rows = {n: [dense(ensemble, prompt, n, at + 1) for at in before[n][:-1]] for n in ensemble.models}
    for name in rows.keys() - {"lingvo"}:
        rows[name] = [completed(*pair) for pair in zip(rows[name], rows["lingvo"], strict=True)]
    nats, _ = plain_losses(ensemble, prompt)

    def loss(weights):
        total = 0.0
        for at, label in enumerate(labels):
            stack = np.stack([rows[name][at] for name in ensemble.models])
            w = np.array([weights.get(name, 0.0) for name in ensemble.models])
            if combine == "mixture":
                fused = w @ stack
            else:
                floor = np.where(stack > 0, stack, np.inf).min(axis=1, keepdims=True)
                logs = np.log(np.where(stack > 0, stack, floor))
                fused = np.where(stack.any(axis=0), np.exp(w @ logs), 0)
                fused /= fused.sum()
            total -= np.log(max(fused[label] / max(fused.sum(), 1), 1e-10))
        return total / len(labels)

    order = sorted(nats, key=lambda name: nats[name])
    best = {order[0]: 1.0}
    for name in order[1:]:
        mixes = [{**{n: w * s for n, w in best.items()}, name: 1 - s} for s in np.linspace(0, 1, 21)]
        best = min(mixes, key=loss)
    assert report.coinciding == len(labels)
    assert report.weights == pytest.approx(best, abs=1e-6)
    assert order[0] == "abacus"
    assert report.weights["abacus"] > 0.3


def test_scoring_is_part_of_the_prefill(tokenizers, run):
    """One advance for the prompt and one a round, as without any scoring."""
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    for fusion in (FusionParams(), weighted("packllm-sim"), weighted("packllm-opt")):
        for member in running.members():
            member.submitted.clear()
        prompt = chat(running.ensemble)
        running.submit(prompt, fusion, max_tokens=1, ignore_eos=True).wait()
        assert [len(member.submitted) for member in running.members()] == [1, 1, 1]


def test_decoding_uses_the_measured_weights(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    prompt = chat(running.ensemble)
    measured = running.submit(prompt, weighted("packllm-sim", temperature=0.1), max_tokens=20).wait()
    weights = measured.last.weighting.weights
    assert measured.ids == running.submit(prompt, FusionParams(weights=weights), max_tokens=20).wait().ids
    assert measured.ids != running.submit(prompt, FusionParams(), max_tokens=20).wait().ids


def test_pruned_members_are_closed_after_the_prefill(tokenizers, run):
    ensemble = toy_ensemble(tokenizers, pivot="lingvo")
    prompt = chat(ensemble)
    teach(ensemble.models["almanac"], prompt.ids["almanac"])
    running = run(ensemble)
    listener = running.submit(prompt, weighted("packllm-sim", prune=0.2), max_tokens=8, ignore_eos=True).wait()
    report = listener.last.weighting
    assert report.pruned == ("abacus",)
    assert report.weights == {"lingvo": 0.0, "abacus": 0.0, "almanac": 1.0}
    assert [len(ensemble.models[name].member.submitted) for name in ("abacus", "almanac")] == [1, 8]
    assert not ensemble.models["abacus"].member.cached
    assert listener.last.departed == {}
    assert all(load.reserved_tokens == 0 for load in running.fuser.load().members.values())


def test_top1_is_the_best_member_alone(tokenizers, run):
    ensemble = toy_ensemble(tokenizers, pivot="lingvo")
    prompt = chat(ensemble)
    teach(ensemble.models["lingvo"], prompt.ids["lingvo"])
    running = run(ensemble)
    listener = running.submit(prompt, weighted("top1"), max_tokens=9).wait()
    assert listener.last.weighting.weights == {"almanac": 0.0, "abacus": 0.0, "lingvo": 1.0}
    assert set(listener.last.weighting.pruned) == {"almanac", "abacus"}
    alone = run(build_ensemble("alone", {"lingvo": ensemble.models["lingvo"]}, "lingvo"))
    assert listener.ids == alone.submit(alone.ensemble.encode_chat(TALK[:1]), max_tokens=9).wait().ids


@given(st.lists(st.floats(0, 1), min_size=2, max_size=5), st.floats(0, 1))
def test_pruning_keeps_the_best_and_the_pivot(values, threshold):
    weights = np.array(values) + 1e-3
    weights /= weights.sum()
    members = [str(i) for i in range(len(weights))]
    left, closed = prune(weights.copy(), members, "0", threshold)
    assert left.sum() == pytest.approx(1)
    assert left[weights.argmax()] > 0
    assert "0" not in closed
    for name, weight, after in zip(members, weights, left, strict=True):
        if weight > threshold:
            assert after >= weight - 1e-12
        assert (name in closed) <= (after == 0)


@pytest.mark.parametrize("method", ["packllm-sim", "packllm-opt"])
def test_a_second_turn_scores_only_what_is_new(tokenizers, run, method):
    fusion = weighted(method, positions=1000)
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    first = report_of(running, chat(running.ensemble), fusion)
    second = report_of(running, chat(running.ensemble, TALK), fusion)
    assert (first.kept, second.kept) == (0, first.tokens)
    fresh = run(toy_ensemble(tokenizers, pivot="lingvo"))
    whole = report_of(fresh, chat(fresh.ensemble, TALK), fusion)
    for name in whole.scored:
        assert 0 < second.scored[name] <= whole.scored[name] - first.scored[name]
    assert second.weights == whole.weights
    assert second.perplexity == pytest.approx(whole.perplexity)
    again = report_of(running, chat(running.ensemble, TALK), fusion)
    assert again.scored == dict.fromkeys(tokenizers, 0)
    assert again.weights == whole.weights


def test_what_comes_before_a_message_is_part_of_what_is_kept(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    report_of(running, chat(running.ensemble), weighted("packllm-sim"))
    other = [{"role": "user", "content": "Something else."}, TALK[1], TALK[0]]
    assert report_of(running, chat(running.ensemble, other), weighted("packllm-sim")).kept == 0


def test_more_positions_are_scored_anew(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    few = report_of(running, chat(running.ensemble), weighted("packllm-sim", positions=4))
    many = report_of(running, chat(running.ensemble), weighted("packllm-sim", positions=1000))
    assert few.tokens <= 4 < many.tokens
    assert many.kept == 0


def test_the_last_message_alone_may_count(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    prompt = chat(running.ensemble, TALK)
    report = report_of(running, prompt, weighted("packllm-sim", history="last"))
    nats, tokens = plain_losses(running.ensemble, prompt, texts=[2])
    assert report.perplexity == pytest.approx({n: np.exp(nats[n] / tokens["lingvo"]) for n in nats}, rel=1e-4)


def test_too_few_coinciding_positions_fall_back_to_sim(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    prompt = chat(running.ensemble)
    opt = report_of(running, prompt, weighted("packllm-opt", coinciding=1000))
    assert opt.method == "packllm-sim"
    assert "1000" in opt.notes[0]
    assert opt.weights == report_of(running, prompt, weighted("packllm-sim")).weights


@pytest.mark.parametrize("text", ["", " ", "a", "\n"])
def test_a_prompt_that_tells_nothing_means_equal_weights(tokenizers, run, text):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    for method in ("packllm-sim", "packllm-opt", "top1"):
        prompt = chat(running.ensemble, [{"role": "user", "content": text}])
        listener = running.submit(prompt, weighted(method, prune=0.9), max_tokens=2).wait()
        assert listener.last.finish == "length"
        report = listener.last.weighting
        assert report.method == "uniform"
        assert list(report.weights.values()) == pytest.approx([1 / 3] * 3)
        assert "too few" in report.notes[0]
        assert report.pruned == ()


@pytest.mark.parametrize("method", ["packllm-sim", "packllm-opt", "top1"])
def test_an_infinite_loss_means_equal_weights(tokenizers, run, method):
    ensemble = toy_ensemble(tokenizers, pivot="lingvo")
    prompt = chat(ensemble)
    teach(ensemble.models["abacus"], prompt.ids["abacus"], -np.inf)
    running = run(ensemble)
    for _ in range(2):  # what was infinite is not kept
        report = report_of(running, prompt, weighted(method))
        assert report.method == "uniform"
        assert "abacus" in report.notes[0]
        assert report.kept == 0


def test_members_without_a_common_boundary_count_equally(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    prompt = running.ensemble.encode_text("", locate=True)
    prompt.ids.update({name: [5] for name in prompt.ids})
    report = report_of(running, prompt, weighted("packllm-opt"))
    assert (report.method, report.tokens) == ("uniform", 0)


def test_token_ids_can_be_scored_too(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    ids = tokenizers["lingvo"].encode(QUESTION, add_special_tokens=True)
    prompt = running.ensemble.encode_ids(ids, locate=True)
    report = report_of(running, prompt, weighted("packllm-sim"))
    nats, tokens = plain_losses(running.ensemble, prompt)
    assert report.perplexity == pytest.approx({n: np.exp(nats[n] / tokens["lingvo"]) for n in nats}, rel=1e-4)
    assert report.tokens > 15


def automatic(tokenizers):
    models = {name: toy_model(tokenizer, name, seed=i) for i, (name, tokenizer) in enumerate(tokenizers.items())}
    return build_for_any_pivot("toys", models)


@pytest.mark.parametrize("expert", ["almanac", "abacus", "lingvo"])
@pytest.mark.parametrize("method", ["given", "packllm-sim", "packllm-opt"])
def test_the_best_member_becomes_the_pivot(tokenizers, run, expert, method):
    ensemble = automatic(tokenizers)
    prompt = chat(ensemble)
    teach(ensemble.models[expert], prompt.ids[expert])
    running = run(ensemble)
    listener = running.submit(prompt, weighted(method), max_tokens=12).wait()
    assert listener.last.pivot == expert
    nats, tokens = plain_losses(ensemble, prompt)
    expected = {name: np.exp(nats[name] / tokens[expert]) for name in nats}
    assert listener.last.weighting.perplexity == pytest.approx(expected, rel=1e-4)
    fixed = run(build_ensemble("fixed", ensemble.models, expert))
    same = fixed.submit(chat(fixed.ensemble), weighted(method), max_tokens=12).wait()
    assert listener.ids == same.ids
    if method != "given":
        assert listener.last.weighting.weights == pytest.approx(same.last.weighting.weights)


def test_sequences_with_different_pivots_run_side_by_side(tokenizers, run):
    ensemble = automatic(tokenizers)
    questions = ["One two three four five.", "La kvieta kamparano kuris.", "What comes next after January?"]
    for name, question in zip(tokenizers, questions, strict=True):
        teach(ensemble.models[name], chat(ensemble, [{"role": "user", "content": question}]).ids[name])
    running = run(ensemble)
    prompts = [chat(ensemble, [{"role": "user", "content": q}]) for q in questions] * 3
    alone = [running.submit(prompt, weighted("packllm-sim")).wait().ids for prompt in prompts]
    together = [running.submit(prompt, weighted("packllm-sim")) for prompt in prompts]
    assert [listener.wait().ids for listener in together] == alone
    assert [listener.last.pivot for listener in together] == [*tokenizers] * 3
