"""Prompts whose evaluation takes long are evaluated beside the loop."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace

import pytest

from fusion.assembly.ensembles import build_ensemble
from fusion.core import Advance, Generate
from fusion.options import FusionParams
from fusion.prompt import scoring
from fusion.prompt.echo import Echo
from fusion.prompt.echoed_sums import EchoedSums
from fusion.prompt.reading import PromptReading
from tests.support.scripted_fuser import eventually
from tests.support.toy_fuser import ROOMY, toy_ensemble, toy_model
from tests.support.weighted_prompts import QUESTION, weighted


@pytest.fixture
def slow_reading(monkeypatch):
    """Has prompts evaluated only once the event is set; returns it, and one that says that somebody waits."""
    go_on, waits, read = threading.Event(), threading.Event(), PromptReading.read

    def reads(self, answers, weights):
        if self.is_long:
            waits.set()
            assert go_on.wait(20)
        return read(self, answers, weights)

    monkeypatch.setattr(PromptReading, "read", reads)
    yield go_on, waits
    go_on.set()


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        (QUESTION, {"fusion": weighted("packllm-opt")}),
        (QUESTION, {"prompt_logprobs": 2}),
        (QUESTION * 24, {"fusion": weighted("packllm-sim", positions=4096)}),
    ],
    ids=["search", "echo", "many positions"],
)
def test_others_decode_while_a_prompt_is_searched(tokenizers, run, slow_reading, text, asks):
    go_on, waits = slow_reading
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    prompt = running.ensemble.encode_text(text, locate=True)
    slow = running.submit(prompt, **asks)
    assert waits.wait(20)
    running.submit("Hello", max_tokens=8).wait()
    assert not slow.updates
    go_on.set()
    assert slow.wait().last.finish
    assert slow.last.weighting is not None or slow.updates[0].prompt


def test_a_sequence_that_is_cancelled_meanwhile_is_gone(tokenizers, run, slow_reading):
    go_on, waits = slow_reading
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    prompt = running.ensemble.encode_text(QUESTION, locate=True)
    slow = running.submit(prompt, weighted("packllm-opt"))
    assert waits.wait(20)
    running.fuser.cancel(slow.number)
    go_on.set()
    running.submit("Hello", max_tokens=2).wait()
    assert not slow.updates
    assert running.fuser.open_sequences() == 0


def test_a_member_that_is_lost_meanwhile_leaves(tokenizers, run, slow_reading):
    go_on, waits = slow_reading
    running = run(toy_ensemble(tokenizers, pivot="lingvo", on_member_failure="degrade"))
    prompt = running.ensemble.encode_text(QUESTION, locate=True)
    slow = running.submit(prompt, weighted("packllm-opt"))
    assert waits.wait(20)
    running.ensemble.models["abacus"].member.fail()
    running.submit("Hello", max_tokens=2).wait()
    go_on.set()
    assert slow.wait().last.finish
    assert list(slow.last.departed) == ["abacus"]


def test_prompts_of_the_cancelled_are_not_evaluated(tokenizers, run, slow_reading, monkeypatch):
    go_on, waits = slow_reading
    read, done = PromptReading.read, []
    monkeypatch.setattr(PromptReading, "read", lambda *args: (done.append(args[0]), read(*args))[1])
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    prompt = running.ensemble.encode_text(QUESTION, locate=True)
    first, second = (running.submit(prompt, weighted("packllm-opt")) for _ in range(2))
    assert waits.wait(20)
    assert eventually(lambda: running.fuser.open_sequences() == 2)
    running.submit("Hello", max_tokens=2).wait()  # by now the second waits for the reader
    running.fuser.cancel(second.number)
    assert eventually(lambda: running.fuser.open_sequences() == 1)
    go_on.set()
    assert first.wait().last.finish
    third = running.submit(prompt, prompt_logprobs=1)
    assert third.wait().last.finish
    assert len(done) == 2


@pytest.fixture
def slow_plans(monkeypatch):
    """Has it found out only once the event is set where prompts are scored; returns it, and one as above."""
    go_on, waits, begin = threading.Event(), threading.Event(), PromptReading.__init__

    def begins(self, *args):
        waits.set()
        assert go_on.wait(20)
        begin(self, *args)

    monkeypatch.setattr(PromptReading, "__init__", begins)
    yield go_on, waits
    go_on.set()


@pytest.mark.parametrize("asks", [{"fusion": weighted("packllm-sim")}, {"prompt_logprobs": 2}])
def test_others_decode_while_it_is_found_out_where_a_prompt_is_scored(tokenizers, run, slow_plans, asks):
    go_on, waits = slow_plans
    running = run(toy_ensemble(tokenizers, pivot="lingvo", on_member_failure="degrade"))
    prompt = running.ensemble.encode_text(QUESTION, locate=True)
    slow, cancelled = running.submit(prompt, **asks), running.submit(prompt, **asks)
    assert waits.wait(20)
    running.submit("Hello", max_tokens=8).wait()
    running.ensemble.models["abacus"].member.fail()
    running.fuser.cancel(cancelled.number)
    running.submit("Hello", max_tokens=2).wait()
    go_on.set()
    assert slow.wait().last.finish
    assert list(slow.last.departed) == ["abacus"]
    assert slow.last.weighting is not None or slow.updates[0].prompt
    assert not cancelled.updates


def test_answers_to_a_prompt_share_what_is_found_out_about_it(tokenizers, run, monkeypatch):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    prompt = running.ensemble.encode_text(QUESTION, locate=True)
    found, shared, begin = Counter(), scoring.shared_boundaries, Echo.__init__
    monkeypatch.setattr(scoring, "shared_boundaries", lambda *args: found.update("t") or shared(*args))
    monkeypatch.setattr(Echo, "__init__", lambda *args: found.update("e") or begin(*args))
    answers = [running.submit(prompt, weighted("packllm-sim"), prompt_logprobs=0, seed=i) for i in range(4)]
    assert len({tuple(answer.wait().ids) for answer in answers}) == 1
    assert found == {"t": 1, "e": 1}


def test_others_decode_while_the_candidates_of_a_sum_are_looked_for(tokenizers, run, monkeypatch):
    go_on, waits, find = threading.Event(), threading.Event(), EchoedSums.candidates

    def candidates(self, pivot):
        waits.set()
        assert go_on.wait(20)
        return find(self, pivot)

    monkeypatch.setattr(EchoedSums, "candidates", candidates)
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    prompt = running.ensemble.encode_text(QUESTION, locate=True)
    sums = FusionParams(combine="arithmetic", weights={"lingvo": 1.0, "abacus": 0.5, "almanac": -0.5})
    slow = running.submit(prompt, sums, prompt_logprobs=2)
    assert waits.wait(20)
    running.submit("Hello", max_tokens=8).wait()
    assert not slow.updates
    go_on.set()
    assert slow.wait().last.finish
    assert slow.updates[0].prompt


@pytest.mark.parametrize(("most", "rounds"), [(2, True), (3, False)])
def test_a_bias_beyond_what_an_engines_own_loop_takes_is_decoded_in_rounds(
    tokenizers, run, monkeypatch, most, rounds
):
    monkeypatch.setattr("fusion.sequence.opening.MOST_BIASED", most)
    model = toy_model(tokenizers["abacus"], "abacus", seed=3, capacity=replace(ROOMY, generates=True))
    running = run(build_ensemble("one", {"abacus": model}, "abacus"))
    tasks, submit = [], model.member.submit
    monkeypatch.setattr(
        model.member, "submit", lambda work: (tasks.extend(work), submit(work) if rounds else None)
    )
    answer = running.submit("Hello", max_tokens=3, logit_bias={5: 1.0, 6: 1.0, 7: 1.0})
    assert eventually(lambda: bool(tasks))
    assert isinstance(tasks[0], Advance if rounds else Generate)
    if rounds:
        assert answer.wait().last.finish
