"""Learned weights in sequences: who reads the prompt, who is the pivot, and what the report says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusion.assembly.ensembles import build_for_any_pivot
from fusion.learned.weights import LearnedWeights
from fusion.loop.observer import Observer
from fusion.options import FusionParams, Weighting
from tests.support.learned import by_words
from tests.support.toy_fuser import toy_ensemble
from tests.support.weighted_prompts import TALK, chat, report_of

EXPERTS = {"farmer": "abacus", "short": "almanac"}
LEARNED = FusionParams(weighting=Weighting("learned", prune=0.05), report=True)


def plain(ensemble, text):
    return ensemble.encode_chat([{"role": "user", "content": text}])


@pytest.fixture
def ensembles(tokenizers):
    fixed = toy_ensemble(tokenizers, pivot="lingvo")
    learned = by_words(EXPERTS, list(fixed.models))
    free = build_for_any_pivot("toys", fixed.models)
    return replace(fixed, learned=learned), replace(free, learned=learned)


def test_an_experts_question_is_read_by_the_expert_alone(ensembles, run):
    running = run(ensembles[1])
    end = running.submit(plain(running.ensemble, "the farmer ran"), LEARNED, max_tokens=3).wait().last
    assert end.pivot == "abacus"
    assert end.weighting.pruned == tuple(name for name in running.ensemble.models if name != "abacus")
    assert list(end.account.prompts) == ["abacus"]
    assert all(set(round.weights) == {"abacus"} for round in end.rounds)
    assert end.weighting.scored == {}


def test_answers_to_a_prompt_share_the_decision(ensembles, run, monkeypatch):
    running, decided, weigh = run(ensembles[1]), [], LearnedWeights.weigh
    monkeypatch.setattr(LearnedWeights, "weigh", lambda *args: decided.append(args[1]) or weigh(*args))
    prompt = plain(running.ensemble, "the farmer ran")
    answers = [running.submit(prompt, LEARNED, max_tokens=2, seed=seed) for seed in range(3)]
    assert {answer.wait().last.pivot for answer in answers} == {"abacus"}
    assert decided == ["the farmer ran"]
    other = replace(LEARNED, weighting=replace(LEARNED.weighting, prune=0.0))
    assert not running.submit(prompt, other, max_tokens=2).wait().last.weighting.pruned


def test_a_fixed_pivot_goes_on_without_a_vote(ensembles, run):
    running = run(ensembles[0])
    end = running.submit(plain(running.ensemble, "the farmer ran"), LEARNED, max_tokens=3).wait().last
    assert end.pivot == "lingvo"
    assert set(end.account.prompts) == {"lingvo", "abacus"}
    assert end.weighting.weights["lingvo"] == 0


def test_the_report_names_the_words(ensembles, run):
    running = run(ensembles[0])
    report = report_of(running, plain(running.ensemble, "a short text"), LEARNED)
    assert report.method == "learned"
    assert next(iter(report.features)) == "short"
    assert report.leader == "almanac"
    assert report.similarity > 0.05


def test_an_unfamiliar_prompt_weighs_all_the_same(ensembles, run):
    """However much a member has to weigh: equal ones are not pruned."""
    running = run(ensembles[0])
    strict = replace(LEARNED, weighting=replace(LEARNED.weighting, prune=1.0))
    report = report_of(running, plain(running.ensemble, "Guten Morgen"), strict)
    assert report.pruned == ()
    assert list(report.weights.values()) == pytest.approx([1 / 3] * 3)
    assert (report.method, report.leader) == ("uniform", None)
    assert "resembles no questions" in report.notes[0]


def test_of_a_conversation_the_last_message_can_count_alone(ensembles, run):
    running = run(ensembles[0])
    prompt = running.ensemble.encode_chat(TALK)
    last = replace(LEARNED, weighting=replace(LEARNED.weighting, history="last"))
    assert report_of(running, prompt, last).leader == "almanac"
    assert report_of(running, prompt, LEARNED).leader is None  # as much speaks for another member


def test_losses_are_taken_from_the_prompt_that_is_read_anyway(ensembles, run):
    learned = by_words(EXPERTS, list(ensembles[1].models), kind="text and losses")
    number = np.zeros_like(learned.number)
    number[1 + 2, 2] = -50.0  # the third member, by its loss on the prompt: the lower the better
    running = run(replace(ensembles[1], learned=replace(learned, number=number)))
    end = running.submit(chat(running.ensemble), LEARNED, max_tokens=2).wait().last
    assert set(end.account.prompts) == set(running.ensemble.models)
    assert end.weighting.method == "learned"
    assert set(end.weighting.perplexity) == set(running.ensemble.models)
    assert end.pivot == max(end.weighting.weights, key=lambda name: end.weighting.weights[name])


def test_an_observer_hears_of_it_once(ensembles, run):
    class Heard(Observer):
        def __init__(self):
            self.reports = []

        def weighed(self, model, report):
            self.reports.append(report)

    running = run(ensembles[1])
    running.fuser.observer = heard = Heard()
    running.submit(plain(running.ensemble, "the farmer ran"), LEARNED, max_tokens=2).wait()
    assert [report.leader for report in heard.reports] == ["abacus"]


def test_offsets_take_a_members_usual_loss_off(ensembles, run):
    running = run(ensembles[0])
    prompt = chat(running.ensemble)
    before = report_of(running, prompt, FusionParams(weighting=Weighting("packllm-sim")))
    usual = {name: float(np.log(value)) for name, value in before.perplexity.items()}
    centred = FusionParams(weighting=Weighting("packllm-sim", offsets=usual))
    after = report_of(running, prompt, centred)
    assert list(after.weights.values()) == pytest.approx([1 / 3] * 3, abs=1e-3)
    assert after.perplexity == pytest.approx(before.perplexity)
    favoured = {**usual, "almanac": usual["almanac"] + 2}
    for method in ("top1", "packllm-sim", "packllm-opt"):
        weighting = Weighting(method, offsets=favoured, coinciding=2)
        assert report_of(running, prompt, FusionParams(weighting=weighting)).leader == "almanac", method
