"""What the fuser tells of its work agrees with what its callers see, and measuring can break nothing."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.spatial.distance import jensenshannon

from fusion.core import Capacity
from fusion.loop.observer import SILENCE, Observer, divergence, member_load
from fusion.options import FusionParams
from tests.support.toy_fuser import ROOMY, toy_ensemble

REPORT = FusionParams(report=True)


class Recorder(Observer):
    """Keeps everything it is told."""

    def __init__(self) -> None:
        self.told: list[tuple] = []
        self.rounds: list = []

    def answered(self, member, step, prompts, tokens):
        self.told.append(("answered", member, step, prompts, tokens))

    def fused(self, rounds):
        self.rounds.append(rounds)

    def rolled_back(self, model, member, tokens):
        self.told.append(("rolled_back", model, member, tokens))

    def left(self, model, member, reason):
        self.told.append(("left", model, member, reason))

    def of(self, kind: str) -> list[tuple]:
        return [told[1:] for told in self.told if told[0] == kind]


def eventually(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


@pytest.fixture
def watched(tokenizers, run):
    """A running ensemble of three vocabularies and who watches it."""
    running = run(toy_ensemble(tokenizers, pivot="lingvo", defaults=replace(REPORT, filter_top=2)))
    running.fuser.observer = Recorder()
    return running, running.fuser.observer


def test_rounds_agree_with_the_reports(watched):
    running, seen = watched
    listeners = [running.submit(f"question {i}", max_tokens=20) for i in range(4)]
    reports = [report for listener in listeners for report in listener.wait().last.rounds]
    running.fuser.stop()
    assert sum(len(rounds.weights) for rounds in seen.rounds) == len(reports)
    told = Counter()
    for rounds in seen.rounds:
        rows = rounds.weights, rounds.kept, rounds.mass
        for weights, kept, mass in zip(*rows, strict=True):
            told[tuple(zip(rounds.voters, weights.tolist(), kept.tolist(), mass.tolist(), strict=True))] += 1
    assert told == Counter(
        tuple((name, r.weights[name], r.kept[name], r.mass[name]) for name in r.weights) for r in reports
    )
    told_back = Counter()
    for _, member, tokens in seen.of("rolled_back"):
        told_back[member] += tokens
    reported = Counter()
    for report in reports:
        reported.update({name: tokens for name, tokens in report.rolled_back.items() if tokens})
    assert reported <= told_back  # a member may roll back and sit out, which no report shows
    assert told_back, "the toys' random texts are cut anew now and then"


def test_times_of_rounds_are_the_times_between_tokens(watched):
    running, seen = watched
    warm = running.submit("warm up").wait()
    eventually(lambda: sum(len(rounds.weights) for rounds in seen.rounds) == len(warm.ids))
    seen.rounds.clear()
    began = time.perf_counter()
    listener = running.submit("a question", max_tokens=30).wait()
    elapsed = time.perf_counter() - began
    running.fuser.stop()
    account = listener.last.account
    assert account.rounds == len(listener.ids)
    assert set(account.prompts) == set(running.ensemble.models)
    assert began < account.submitted <= account.started <= min(account.prompts.values()) < began + elapsed
    assert sum(len(rounds.waiting) for rounds in seen.rounds) == account.rounds - 1
    for stage in ("fusion", "sampling"):
        assert sum(getattr(r, stage) for r in seen.rounds) == pytest.approx(getattr(account, stage))
    assert sum(sum(r.waiting) for r in seen.rounds) == pytest.approx(account.waiting)
    stages = [[*r.waiting, r.fusion, r.sampling, r.synchronisation] for r in seen.rounds]
    assert all(seconds >= 0 for row in stages for seconds in row)
    decoding = seen.rounds[-1].ended - seen.rounds[0].ended
    between = sum(map(sum, stages[1:])) + seen.rounds[0].synchronisation - seen.rounds[-1].synchronisation
    assert between == pytest.approx(decoding, rel=1e-3)


def test_the_last_to_answer_is_told_and_by_how_much(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    running.fuser.observer = seen = Recorder()
    slow = running.ensemble.models["abacus"].member
    slow.hold = True
    began = time.perf_counter()
    running.submit("Hello", max_tokens=2)
    for advances in (1, 2):  # the prompt, then the first token
        eventually(lambda wanted=advances: sum(map(len, slow.submitted)) == wanted)
        eventually(lambda wanted=advances: sum(name != "abacus" for name, *_ in seen.of("answered")) == 2 * wanted)
        time.sleep(0.2)
        slow.hold = advances == 1
        slow.release()
    eventually(lambda: len(seen.rounds) == 2)
    assert seen.rounds[0].last == [], "members read prompts at unlike speed, before any round"
    [(name, seconds)] = seen.rounds[1].last
    assert name == "abacus"
    assert 0.2 <= seconds < time.perf_counter() - began
    waits = {member: prompts[0] for member, _, prompts, _ in seen.of("answered") if prompts}
    assert waits["abacus"] >= waits["lingvo"] + 0.2


def test_a_member_that_leaves_is_told(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    running.fuser.observer = seen = Recorder()
    wide, tight = (running.ensemble.models[name].member for name in ("lingvo", "abacus"))
    prompt = running.ensemble.encode_chat([{"role": "user", "content": "Hello"}])
    longest = max(
        range(len(running.ensemble.tokenizer.surfaces)), key=lambda i: len(running.ensemble.first.surface(i))
    )
    always = np.where(np.arange(wide.vocabulary_size) == longest, -1e-6, -20.0).astype(np.float32)
    wide.distribution = lambda tokens: always
    tight.capacity = Capacity(len(prompt.ids["abacus"]) + 40, 100_000, 8)
    weights = FusionParams(weights={"lingvo": 0.98, "abacus": 0.02})
    assert "abacus" in running.submit(prompt, weights, max_tokens=40).wait().last.departed
    running.fuser.stop()
    assert seen.of("left") == [("toys", "abacus", "outgrown")]


def test_a_failing_observer_stops_nobody(tokenizers, run):
    class Broken(Recorder):
        def fused(self, rounds):
            raise ArithmeticError("cannot count")

    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    expected = running.submit().wait().ids
    running.fuser.observer = Broken()
    assert running.submit().wait().ids == expected


def test_the_load_is_what_runs_and_waits(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo", capacity=replace(ROOMY, sequences=1)))
    for member in running.members():
        member.hold = True
    running.submit("Hello")
    running.submit("Hello again")
    eventually(lambda: all(len(member.cached) == 1 for member in running.members()))
    load = running.fuser.load()
    assert (load.running, load.waiting) == ({"toys": 1}, {"toys": 1})
    prompt = running.ensemble.encode_chat([{"role": "user", "content": "Hello"}])
    for name, held in load.members.items():
        assert held.up
        assert held.sequences == 1
        assert held.cached_tokens == len(prompt.ids[name])
        assert held.cached_tokens < held.reserved_tokens < held.cache_tokens == ROOMY.cache_tokens


def test_a_member_that_lets_its_work_lie_is_not_up(tokenizers, run, monkeypatch):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))

    def up() -> set[str]:
        return {name for name, load in running.fuser.load().members.items() if load.up}

    everybody = set(running.ensemble.models)
    stuck = running.ensemble.models["abacus"].member
    stuck.hold = True
    passed = SILENCE + 1
    monkeypatch.setattr("fusion.loop.observer.perf_counter", lambda: time.perf_counter() + passed)
    assert up() == everybody, "nobody has anything to do"
    passed = 0
    listener = running.submit("Hello", max_tokens=2)
    eventually(lambda: running.fuser.open_sequences() > 0)
    assert up() == everybody, "it has just begun"
    passed = SILENCE + 1
    eventually(lambda: up() == everybody - {"abacus"})
    stuck.hold = False
    stuck.release()
    listener.wait()
    eventually(lambda: up() == everybody)


positive = st.floats(0.001, 1)


@given(npst.arrays(np.float64, st.tuples(st.integers(1, 3), st.just(2), st.integers(1, 6)), elements=positive))
def test_divergence_of_two_is_scipys(probabilities):
    found = divergence(probabilities)
    for row, value in zip(probabilities, found, strict=True):
        assert value == pytest.approx(jensenshannon(row[0], row[1]) ** 2, abs=1e-9)


def test_divergence_at_its_ends():
    apart, same = np.eye(3)[None], np.full((1, 3, 4), 0.1)
    assert divergence(apart) == pytest.approx(np.log(3))
    assert divergence(same) == pytest.approx(0)
    silent = np.concatenate([same[:, :2], np.zeros((1, 1, 4))], axis=1)
    assert divergence(silent) == pytest.approx(0), "a member whose tokens all lost their way does not count"


def test_a_seat_that_is_closed_meanwhile_is_missed():
    """Loads are read on other threads than the one that opens and closes seats."""
    closed = SimpleNamespace(on_engine=lambda engine: ["abacus"], seats={}, sent=0.0)
    member = SimpleNamespace(name="abacus", capacity=ROOMY)
    load = member_load(member, [closed], there=True, heard=0.0, reserved=0)
    assert (load.up, load.sequences) == (True, 0)
