"""A member whose engine runs in a process of its own: the same answers, and no trouble that is not noticed."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest

from alignment.errors import ConfigError
from fusion.core import Advance, AdvanceFailed, Down, NextTokens, Up
from fusion.members.hosts.process import process
from fusion.members.hosts.remote import Patience, RemoteMember
from fusion.members.registry import EngineSpec
from tests.support.drafted_answers import drafts_change_nothing
from tests.support.hosted_ensembles import hosted_ensemble
from tests.support.inbox import LIMIT, Inbox
from tests.support.worker_engines import HERE, SumEngine, expected, sums
from tests.support.worker_processes import workers

QUICK = Patience(silence_seconds=30.0, restart_seconds=0.05, longest_restart_seconds=0.2)


@pytest.fixture
def inbox():
    return Inbox()


@pytest.fixture
def launch(inbox):
    members = []

    def start(spec, *, environment=None, patience=QUICK):
        member = RemoteMember("ada", spec, process(environment or {}), patience)
        members.append(member)
        member.wait()
        member.start(inbox)
        return member

    yield start
    for member in members:
        member.stop()


def test_drafts_over_processes_change_no_answer(tokenizers, run, monkeypatch):
    def start(name, spec):
        member = RemoteMember(name, spec, process({}), QUICK)
        member.wait()
        return member

    running = run(hosted_ensemble(tokenizers, start, "lingvo"))
    drafts_change_nothing(running, tokenizers["lingvo"].vocabulary_size, monkeypatch)


def gone(pid, seconds=LIMIT):
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def refusal(spec):
    member = RemoteMember("ada", spec, process({}), QUICK)
    with pytest.raises(ConfigError) as caught:
        member.wait()
    member.stop()
    return str(caught.value)


def test_answers_come_back_as_the_engine_gave_them(launch, inbox):
    member = launch(sums(vocabulary=40, context=77))
    assert (member.vocabulary_size, member.capacity.context) == (40, 77)
    member.submit([Advance(1, 0, [1, 2, 3]), Advance(2, 0, [9], "all")])
    member.submit([Advance(3, 0, [4, 5], "all")])
    answers = {answer.sequence: answer for answer in inbox.wait_for(3)}
    ids, logprobs = expected([1, 2, 3], 40)
    assert np.array_equal(answers[1].ids, ids[None])
    assert np.array_equal(answers[1].logprobs, logprobs[None])
    assert answers[1].appended_logprobs is None
    assert answers[3].ids.shape == (2, 8)
    assert answers[3].appended_logprobs.shape == (1,)
    member.submit([Advance(1, 2, [7])])
    assert np.array_equal(inbox.wait_for(4)[3].ids, expected([1, 2, 7], 40)[0][None])


def test_a_prompt_larger_than_any_socket_buffer_arrives(launch, inbox):
    member = launch(sums(context=10**7))
    prompts = [[number % 900] * 400_000 for number in range(4)]
    [worker] = workers()
    worker.suspend()
    member.submit([Advance(number, 0, prompt) for number, prompt in enumerate(prompts)])
    assert inbox.received == [], "whoever submits does not wait for the worker to read, or to be ended"
    worker.resume()
    for answer in inbox.wait_for(4):
        assert np.array_equal(answer.ids[0], expected(prompts[answer.sequence])[0])


def test_a_closed_sequence_is_forgotten(launch, inbox):
    member = launch(sums())
    member.submit([Advance(1, 0, [1, 2])])
    inbox.wait_for(1)
    member.close({1})
    member.submit([Advance(1, 1, [2])])
    assert isinstance(inbox.wait_for(2)[1], AdvanceFailed)


def test_a_failing_step_costs_its_sequence_not_the_worker(launch, inbox):
    member = launch(sums())
    member.submit([Advance(1, 0, [SumEngine.FAIL])])
    assert "no such luck" in inbox.wait_for(1)[0].reason
    member.submit([Advance(2, 0, [1])])
    assert isinstance(inbox.wait_for(2)[1], NextTokens)


def test_what_a_worker_logs_is_in_the_servers_log(launch, inbox, caplog):
    member = launch(sums())
    member.submit([Advance(1, 0, [3, SumEngine.FAIL])])
    inbox.wait_for(1)
    [line] = [record for record in caplog.records if record.name == "fusion.members.hosts.inline"]
    assert line.levelname == "ERROR"
    assert line.getMessage().startswith("[ada] a step of an engine on cpu failed\nTraceback")
    assert line.getMessage().endswith("RuntimeError: no such luck")


def test_a_killed_worker_is_noticed_at_once_and_started_anew(launch, inbox):
    member = launch(sums())
    member.submit([Advance(1, 0, [1])])
    inbox.wait_for(1)
    [worker] = workers()
    began = time.monotonic()
    worker.kill()
    down, up = inbox.wait_for(3)[1:]
    assert inbox.times[1] - began < 15
    assert isinstance(down, Down)
    assert down.reason == "its worker process was killed by SIGKILL"
    assert down.retry_after > 0
    assert isinstance(up, Up)
    member.submit([Advance(1, 0, [5])])
    assert np.array_equal(inbox.wait_for(4)[3].ids[0], expected([5])[0])


def test_work_for_a_worker_that_is_gone_is_dropped(launch, inbox):
    member = launch(sums(), patience=Patience(restart_seconds=60))
    workers()[0].kill()
    assert isinstance(inbox.wait_for(1)[0], Down)
    member.submit([Advance(1, 0, [1])])
    member.close([1])


def test_a_worker_that_hangs_is_ended_and_replaced(launch, inbox):
    member = launch(sums(), patience=replace(QUICK, silence_seconds=2.0))
    [worker] = workers()
    member.submit([Advance(1, 0, [1])])
    inbox.wait_for(1)
    member.submit([Advance(2, 0, [SumEngine.FREEZE])])
    down, up = inbox.wait_for(3)[1:]
    assert 2 < inbox.times[1] - inbox.times[0] < LIMIT
    assert down.reason == "its worker process hung: it said nothing for 2 seconds"
    assert isinstance(up, Up)
    assert gone(worker.pid)


def test_a_hung_worker_does_not_hold_up_whoever_submits(launch, inbox):
    member = launch(sums(context=10**8), patience=Patience(silence_seconds=60))
    workers()[0].suspend()
    for number in range(20):
        member.submit([Advance(number, 0, [1] * 100_000)])
    assert inbox.received == [], "it was not ended, which would have freed whoever waits"
    workers()[0].resume()
    inbox.wait_for(20)


def test_a_worker_that_is_busy_for_long_has_not_hung(launch, inbox):
    member = launch(sums(seconds=3), patience=replace(QUICK, silence_seconds=2.0))
    member.submit([Advance(1, 0, [1])])
    assert isinstance(inbox.wait_for(1)[0], NextTokens)


def test_a_step_that_never_ends_has_hung(launch, inbox):
    member = launch(sums(seconds=60), patience=Patience(step_seconds=0.5, restart_seconds=0.05))
    member.submit([Advance(1, 0, [1])])
    down, up = inbox.wait_for(2)
    assert down.reason == "its engine hung: a step took longer than 0.5 seconds"
    assert isinstance(up, Up)


def test_an_engine_that_fails_again_and_again_is_replaced(launch, inbox):
    member = launch(sums())
    for number in range(3):
        member.submit([Advance(number, 0, [SumEngine.FAIL])])
        inbox.wait_for(number + 1)
    down, up = inbox.wait_for(5)[3:]
    assert down.reason == "its engine failed 3 times in a row, last with RuntimeError: no such luck"
    assert isinstance(up, Up)


def test_an_engine_that_will_not_work_again_is_replaced_unasked(launch, inbox):
    member = launch(sums())
    member.submit([Advance(1, 0, [SumEngine.BREAK])])
    _, down, up = inbox.wait_for(3)
    assert inbox.times[1] - inbox.times[0] < 15
    assert down.reason == "it lost a wheel"
    assert isinstance(up, Up)


def test_failures_with_success_in_between_are_not_held_against_an_engine(launch, inbox):
    member = launch(sums())
    for number, token in enumerate([SumEngine.FAIL, SumEngine.FAIL, 1] * 3):
        member.submit([Advance(number, 0, [token])])
        inbox.wait_for(number + 1)
    time.sleep(1)
    assert len(inbox.received) == 9


def test_attempts_to_come_back_are_further_and_further_apart(inbox, tmp_path):
    note = tmp_path / "note"
    member = RemoteMember(
        "ada",
        EngineSpec(f"{HERE}:once", {"note": str(note)}),
        process({}),
        Patience(restart_seconds=0.1, longest_restart_seconds=0.4),
    )
    member.wait()
    member.start(inbox)
    workers()[0].kill()
    downs = inbox.wait_for(4)[:4]
    assert downs[0].reason.endswith("killed by SIGKILL")
    assert {down.reason for down in downs[1:]} == {
        "its worker process ended with exit code 4 before it was ready; see what it printed"
    }
    note.unlink()
    while not isinstance(inbox.wait_for(1)[-1], Up):
        time.sleep(0.01)
    member.stop()
    waits = [down.retry_after for down in downs]
    assert [round(b - a, 3) for a, b in pairwise(waits)] == [0.1, 0.2, 0.0]


@pytest.mark.parametrize(
    ("loader", "arguments", "sentence"),
    [
        ("refuse", {"sentence": "Lower cache_tokens."}, "Lower cache_tokens."),
        ("break_down", {}, "The engine cannot be loaded: ZeroDivisionError: by zero."),
        ("vanish", {}, "its worker process ended with exit code 3 before it was ready; see what it printed."),
    ],
)
def test_what_keeps_an_engine_from_loading_is_one_sentence(loader, arguments, sentence):
    assert refusal(EngineSpec(f"{HERE}:{loader}", arguments)) == sentence
    assert not workers()


def test_a_worker_has_its_own_environment_and_none_of_the_servers_output(launch, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    launch(EngineSpec(f"{HERE}:report", {"path": str(tmp_path / "r")}), environment={"CUDA_VISIBLE_DEVICES": "3"})
    lines = (tmp_path / "r").read_text().splitlines()
    assert "CUDA_VISIBLE_DEVICES=3" in lines
    assert f"HOME={tmp_path}" in lines
    out, err = capfd.readouterr()
    assert "said by the engine" not in out
    assert "said by the engine" in err


def test_stopping_ends_the_process(inbox):
    member = RemoteMember("ada", sums(), process({}))
    member.wait()
    member.start(inbox)
    [worker] = workers()
    member.stop()
    assert not worker.is_running()
    assert inbox.received == []
    member.submit([Advance(1, 0, [1])])
    member.stop()


def test_stopping_does_not_wait_for_a_worker_that_is_still_loading(tmp_path):
    started = tmp_path / "pid"
    member = RemoteMember("ada", EngineSpec(f"{HERE}:linger", {"path": str(started)}), process({}))
    while not started.exists() or not started.read_text():
        time.sleep(0.01)
    began = time.monotonic()
    member.stop()
    assert time.monotonic() - began < LIMIT
    assert gone(int(started.read_text()), 0)


def test_signals_for_the_servers_group_do_not_reach_a_worker(launch, inbox):
    member = launch(sums())
    [worker] = workers()
    assert os.getpgid(worker.pid) != os.getpgid(0)
    for number in (signal.SIGINT, signal.SIGTERM):
        worker.send_signal(number)
    member.submit([Advance(1, 0, [1])])
    assert isinstance(inbox.wait_for(1)[0], NextTokens)


ORPHANING = """
import os, sys, time
from fusion.members.hosts.process import process
from fusion.members.hosts.remote import RemoteMember
from tests.support.inbox import LIMIT, Inbox
from tests.support.worker_engines import sums
member = RemoteMember("ada", sums(), process({}))
member.wait()
import psutil
print(psutil.Process().children()[0].pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("suspended", [False, True])
def test_no_worker_outlives_a_server_that_is_killed(suspended):

    root = str(Path(__file__).parents[4])
    with subprocess.Popen(
        [sys.executable, "-c", ORPHANING], stdout=subprocess.PIPE, text=True, cwd=root
    ) as server:
        worker = int(server.stdout.readline())
        if suspended:
            os.kill(worker, signal.SIGSTOP)
        server.kill()
    assert gone(worker)


def test_a_worker_that_never_loads_is_replaced(tmp_path, inbox):
    note, patience = (
        tmp_path / "note",
        Patience(restart_seconds=0.05, longest_restart_seconds=0.2, load_seconds=1.0),
    )
    member = RemoteMember("ada", EngineSpec(f"{HERE}:stuck", {"note": str(note)}), process({}), patience)
    member.wait()
    member.start(inbox)
    workers()[0].kill()
    downs = inbox.wait_for(3)[:3]
    assert [down.reason for down in downs[1:]] == ["its worker process hung: it did not load within 1 seconds"] * 2
    member.stop()
