"""Engines on one device take turns on one thread, and nothing one of them does stops the others."""

import threading
from collections import deque

import numpy as np
import pytest
import torch

from fusion.core import Advance, AdvanceFailed, Capacity, Down, NextTokens
from fusion.members.hosts import inline
from fusion.members.hosts.inline import InlineMember

LIMIT = 30


class ToyEngine:
    """Answers one queued advance a step with the sum of its tokens; `gate` holds a step up."""

    broken = None

    def __init__(self, device="toy:0"):
        self.capacity = Capacity(100, 1000, 10)
        self.vocabulary_size = 1000
        self.device = device
        self.queue = deque()
        self.closed = []
        self.steps = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.alive = True
        self.trace = []

    def add(self, advances):
        self.queue.extend(advances)

    def close(self, sequences):
        self.closed += sorted(sequences)
        self.queue = deque(advance for advance in self.queue if advance.sequence not in sequences)

    def has_work(self):
        return bool(self.queue)

    def step(self):
        self.entered.release()
        assert self.gate.wait(LIMIT)
        self.trace.append(self)
        self.steps.append((threading.current_thread(), len(self.queue)))
        answers = []
        while self.queue:
            advance = self.queue.popleft()
            if 13 in advance.append:
                raise ZeroDivisionError("unlucky\nnumber")
            ids = np.array([[sum(advance.append)]], np.int32)
            answers.append(NextTokens(advance.sequence, ids, np.zeros((1, 1), np.float32)))
        return answers

    def shutdown(self):
        self.alive = False


class Inbox:
    """Collects what members deliver."""

    def __init__(self):
        self.batches = []
        self.arrived = threading.Condition()

    def __call__(self, member, answers):
        with self.arrived:
            self.batches.append((member.name, answers))
            self.arrived.notify_all()

    def wait_for(self, count):
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.answers) >= count, LIMIT)
        return self.answers

    @property
    def answers(self):
        return [answer for _, answers in self.batches for answer in answers]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before
    assert not inline._threads


@pytest.fixture
def inbox():
    return Inbox()


@pytest.fixture
def host(inbox):
    members = []

    def start(name, engine):
        member = InlineMember(name, engine)
        member.start(inbox)
        members.append(member)
        return member

    yield start
    for member in members:
        member.stop()


def test_advances_handed_over_together_share_a_step_and_a_delivery(host, inbox):
    engine = ToyEngine()
    member = host("a", engine)
    member.submit([Advance(1, 0, [2, 3]), Advance(2, 0, [4])])
    inbox.wait_for(2)
    assert [size for _, size in engine.steps] == [2]
    assert [(name, [int(a.ids[0, 0]) for a in answers]) for name, answers in inbox.batches] == [("a", [5, 4])]


def test_engines_of_a_device_take_turns_on_one_thread(host, inbox):
    engines = [ToyEngine() for _ in range(3)]
    trace = engines[0].trace
    for engine in engines:
        engine.trace = trace
    members = [host(str(i), engine) for i, engine in enumerate(engines)]
    engines[0].gate.clear()
    members[0].submit([Advance(1, 0, [1])])
    assert engines[0].entered.acquire(timeout=LIMIT)
    for member in members:
        member.submit([Advance(2, 0, [1])])
    engines[0].gate.set()
    inbox.wait_for(4)
    assert [engines.index(engine) for engine in trace] == [0, 1, 2, 0]
    assert len({thread for engine in engines for thread, _ in engine.steps}) == 1


def test_devices_do_not_wait_for_each_other(host, inbox):
    slow, fast = ToyEngine("toy:0"), ToyEngine("toy:1")
    slow.gate.clear()
    host("slow", slow).submit([Advance(1, 0, [1])])
    host("fast", fast).submit([Advance(1, 0, [2])])
    assert int(inbox.wait_for(1)[0].ids[0, 0]) == 2
    slow.gate.set()
    inbox.wait_for(2)


def test_a_sequence_closed_in_flight_is_never_answered(host, inbox):
    engine = ToyEngine()
    member = host("a", engine)
    engine.gate.clear()
    member.submit([Advance(1, 0, [1]), Advance(2, 0, [2])])
    assert engine.entered.acquire(timeout=LIMIT)
    member.close([1, 99])
    member.submit([Advance(3, 0, [3])])
    engine.gate.set()
    assert [answer.sequence for answer in inbox.wait_for(2)] == [2, 3]
    assert engine.closed == [1, 99]


def test_a_sequence_closed_and_opened_again_in_flight_gets_only_its_new_answer(host, inbox):
    engine = ToyEngine()
    member = host("a", engine)
    engine.gate.clear()
    member.submit([Advance(1, 0, [1])])
    assert engine.entered.acquire(timeout=LIMIT)
    member.close([1])
    member.submit([Advance(1, 0, [50])])
    engine.gate.set()
    member.submit([Advance(2, 0, [2])])
    assert sorted(int(answer.ids[0, 0]) for answer in inbox.wait_for(2)) == [2, 50]


def test_a_failing_step_fails_its_sequences_and_nothing_else(host, inbox, caplog):
    broken, sound = ToyEngine(), ToyEngine()
    member, other = host("broken", broken), host("sound", sound)
    member.submit([Advance(1, 0, [1]), Advance(2, 0, [13]), Advance(3, 0, [1])])
    other.submit([Advance(1, 0, [8])])
    answers = dict(inbox.batches) if len(inbox.wait_for(4)) == 4 else {}
    reason = "The engine failed: ZeroDivisionError: unlucky number"
    assert answers["broken"] == [AdvanceFailed(sequence, reason) for sequence in (1, 2, 3)]
    assert broken.closed == [1, 2, 3]
    assert int(answers["sound"][0].ids[0, 0]) == 8
    member.submit([Advance(4, 0, [4])])
    assert inbox.wait_for(5)[-1].sequence == 4


def test_an_engine_that_hangs_or_fails_every_step_is_in_trouble(host, inbox, caplog):
    engine = ToyEngine()
    member = host("a", engine)
    assert member.trouble() is None
    for number in range(inline.FAILED_STEPS_LIMIT):
        assert member.trouble() is None
        member.submit([Advance(number, 0, [13])])
        inbox.wait_for(number + 1)
    assert not member.trouble().lasting
    assert "failed 3 times in a row, last with ZeroDivisionError" in member.trouble().reason
    engine.gate.clear()
    member.submit([Advance(9, 0, [1])])
    for _ in range(inline.FAILED_STEPS_LIMIT + 1):
        assert engine.entered.acquire(timeout=LIMIT)
    engine.gate.set()
    inbox.wait_for(inline.FAILED_STEPS_LIMIT + 1)
    assert member.trouble() is None, "a step that works clears it"
    engine.gate.clear()
    member.submit([Advance(10, 0, [1])])
    assert engine.entered.acquire(timeout=LIMIT)
    assert member.trouble() is None
    assert member.trouble(longest_step=0.0).lasting
    assert "hung" in member.trouble(longest_step=0.0).reason
    engine.gate.set()


def test_a_sequence_opened_again_is_told_when_its_engine_fails(host, inbox, caplog):
    engine = ToyEngine()
    member = host("a", engine)
    engine.gate.clear()
    member.submit([Advance(1, 0, [1]), Advance(2, 0, [1])])
    assert engine.entered.acquire(timeout=LIMIT)
    member.close([1])
    member.submit([Advance(1, 0, [13])])
    engine.gate.set()
    assert isinstance(inbox.wait_for(2)[1], AdvanceFailed)


def test_a_receiver_that_raises_does_not_stop_the_thread(inbox, caplog):
    calls = []

    def receive(member, answers):
        calls.append(answers)
        if len(calls) == 1:
            raise ValueError("no thanks")
        inbox(member, answers)

    member = InlineMember("a", ToyEngine())
    member.start(receive)
    member.submit([Advance(1, 0, [1])])
    while not calls:
        pass
    member.submit([Advance(2, 0, [1])])
    assert [answer.sequence for answer in inbox.wait_for(1)] == [2]
    member.stop()


def test_stopping_lets_the_step_in_progress_finish_and_the_other_engine_go_on(host, inbox):
    leaving, staying = ToyEngine(), ToyEngine()
    member, other = InlineMember("leaving", leaving), host("staying", staying)
    member.start(inbox)
    leaving.gate.clear()
    member.submit([Advance(1, 0, [1])])
    assert leaving.entered.acquire(timeout=LIMIT)
    opening = threading.Timer(0.05, leaving.gate.set)
    opening.start()
    member.stop()
    opening.join()
    assert not leaving.alive
    assert len(leaving.steps) == 1
    other.submit([Advance(1, 0, [1])])
    inbox.wait_for(2)
    member.stop()


def test_a_device_can_be_used_again_after_its_last_engine_left(inbox):
    for _ in range(20):
        member = InlineMember("a", ToyEngine())
        member.start(inbox)
        member.stop()
    member = InlineMember("a", ToyEngine())
    member.start(inbox)
    member.submit([Advance(1, 0, [1])])
    inbox.wait_for(1)
    member.stop()


def test_what_is_posted_with_work_that_fails_is_closed_all_the_same(host, inbox):
    """Else its place in the cache would be taken for ever."""
    engine = ToyEngine()
    member = host("a", engine)
    member.submit([Advance(1, 0, [1])])
    inbox.wait_for(1)
    engine.gate.clear()
    member.submit([Advance(2, 0, [1])])
    for _ in range(2):
        assert engine.entered.acquire(timeout=LIMIT)
    engine.add = lambda advances: 1 / 0
    member.submit([Advance(3, 0, [1])])
    member.close({1})
    engine.gate.set()
    inbox.wait_for(3)
    assert 1 in engine.closed


def test_an_engine_that_says_it_is_broken_is_down_for_good(host, inbox):
    engine = ToyEngine()
    member = host("a", engine)
    for _ in range(5):  # requests that fail are no proof
        member.submit([Advance(1, 0, [13])])
        inbox.wait_for(1)
        inbox.batches.clear()
    engine.broken = "a worker died"
    member.submit([Advance(1, 0, [13])])
    with inbox.arrived:
        assert inbox.arrived.wait_for(lambda: len(inbox.batches) == 2, LIMIT)
    (_, down), (_, answers) = inbox.batches
    assert down == Down("a worker died", None)
    assert isinstance(answers[0], AdvanceFailed)


def test_a_device_that_fails_for_good_is_down_for_good(host, inbox, monkeypatch):
    """As a CUDA context after an illegal address: each later call fails, whatever it is for."""
    engine = ToyEngine()
    member = host("a", engine)

    def fail():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    lost = False
    monkeypatch.setattr(engine, "step", fail)
    waited: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: (waited.append(device), lost and fail()))
    member.submit([Advance(1, 0, [1])])
    inbox.wait_for(1)
    assert not any(isinstance(what, Down) for _, what in inbox.batches)  # it may have passed
    engine.queue.clear()
    inbox.batches.clear()
    lost = True
    member.submit([Advance(1, 0, [1])])
    with inbox.arrived:
        assert inbox.arrived.wait_for(lambda: len(inbox.batches) == 2, LIMIT)
    _, down = inbox.batches[0]
    reason = "its device is lost to this process: CUDA error: an illegal memory access was encountered"
    assert down == Down(reason, None)
    assert member.trouble(60).reason == reason
    assert set(waited) == {"toy:0"}
