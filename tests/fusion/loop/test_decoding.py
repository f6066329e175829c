"""Prompts whose evaluation takes long are evaluated beside the loop."""

from __future__ import annotations

import threading

import pytest

from fusion.prompt.reading import PromptReading
from tests.support.toy_fuser import toy_ensemble
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


@pytest.mark.parametrize("asks", [{"fusion": weighted("packllm-opt")}, {"prompt_logprobs": 2}])
def test_others_decode_while_a_prompt_is_searched(tokenizers, run, slow_reading, asks):
    go_on, waits = slow_reading
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    prompt = running.ensemble.encode_text(QUESTION, locate=True)
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
