"""The demo ensemble, every member in a process of its own: the same tokens, little time, no harm in a death."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from alignment.errors import UnavailableError
from fusion.core import Delta, End
from fusion.options import SamplingParams
from fusion.policy.pace import Pace
from fusion.sequence.grammar import regex
from server.loading import Runtime, build
from server.settings import parse_settings
from tests.support.constrained_prompts import constrained
from tests.support.demo import CONFIG, ENSEMBLE, REPOSITORY, questions, user
from tests.support.drafted_answers import accepted_drafts
from tests.support.serving import START
from tests.support.toy_fuser import Running
from tests.support.worker_processes import workers
from tools.bench import hosting

LIMIT = 120


def configuration(host: str) -> str:
    """The demo's, with its models hosted so, and the ensemble once more under `forgiving`, which degrades."""
    document = yaml.safe_load(CONFIG.read_text())
    for name, model in document["models"].items():
        model["source"] = str(CONFIG.parent / model["source"])
        if host != "inline":
            model |= {"host": host, "worker": {"environment": {"MEMBER": name}, "restart_seconds": 0.1}}
    document["ensembles"]["forgiving"] = document["ensembles"][ENSEMBLE] | {"on_member_failure": "degrade"}
    document["server"] = {"serve_models": False}
    return yaml.safe_dump(document)


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    runtime = build(parse_settings(configuration("process"), "hosted.yaml", CONFIG.parent, {}))
    runtime.fuser.start()
    yield runtime
    runtime.fuser.stop()


def kill(member: str) -> None:
    """Kill the worker of a member."""
    [worker] = [child for child in workers() if child.environ().get("MEMBER") == member]
    worker.kill()


class Answer:
    """The updates of a sequence; `act` is called on the fuser's thread with the number of tokens so far."""

    def __init__(self, act: Callable[[int], None] = lambda tokens: None) -> None:
        self.ids: list[int] = []
        self.act = act
        self.last: Delta | None = None
        self.ended_at = 0.0
        self.ended = threading.Event()

    def __call__(self, update: Delta) -> None:
        self.ids += [token.chosen.id for token in update.tokens]
        if isinstance(update, End):
            self.last, self.ended_at = update, time.monotonic()
            self.ended.set()
        else:
            self.act(len(self.ids))


def ask(runtime: Runtime, name: str, text: str, answer: Answer, draft: str | None = None, **sampling) -> Answer:
    ensemble = runtime.ensembles[name]
    sampling = {"max_tokens": 48, "temperature": 0.0, **sampling}
    fusion = replace(ensemble.defaults, draft=draft)
    runtime.fuser.submit(
        ensemble, ensemble.encode_chat(user(text)), SamplingParams(**sampling), fusion, on_update=answer
    )
    return answer


def wait(answer: Answer) -> Delta:
    assert answer.ended.wait(LIMIT)
    assert answer.last is not None
    return answer.last


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def greedy(runtime: Runtime, prompts: list[str]) -> list[list[int]]:
    answers = [ask(runtime, ENSEMBLE, prompt, Answer()) for prompt in prompts]
    assert all(wait(answer).finish for answer in answers)
    return [answer.ids for answer in answers]


def test_the_tokens_are_those_of_the_same_members_in_the_server(runtime: Runtime) -> None:
    prompts = questions(24)
    inline = build(parse_settings(configuration("inline"), "inline.yaml", CONFIG.parent, {}))
    inline.fuser.start()
    expected = greedy(inline, prompts)
    inline.fuser.stop()
    assert greedy(runtime, prompts) == expected


@pytest.mark.parametrize("draft", ["auto", "ngram", "abacus"])
def test_drafts_change_no_token(runtime: Runtime, monkeypatch: pytest.MonkeyPatch, draft: str) -> None:
    monkeypatch.setattr(Pace, "least_chance", lambda *costs: 0.2)  # a lead pays, whatever passes take here
    went = accepted_drafts(monkeypatch)
    for prompt in questions(3):
        plain, drafted = ask(runtime, ENSEMBLE, prompt, Answer()), Answer()
        wait(plain)
        wait(ask(runtime, ENSEMBLE, prompt, drafted, draft))
        assert drafted.ids == plain.ids
    assert sum(went) > 0


@pytest.mark.parametrize("draft", ["auto", "ngram", "abacus"])
def test_drafts_under_a_grammar_and_biases_change_no_token(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, draft: str
) -> None:
    monkeypatch.setattr(Pace, "least_chance", lambda *costs: 0.2)  # a lead pays, whatever passes take here
    went = accepted_drafts(monkeypatch)
    running = Running(runtime.fuser, runtime.ensembles[ENSEMBLE])
    prompt = constrained(running, regex("(The answer to that is: [a-z ]{8,20}[.] ){2,4}"))
    options = {"max_tokens": 60, "temperature": 0.7, "seed": 1, "logit_bias": {400: 2.0, 401: -100.0}}
    plain = running.submit(prompt, **options).wait()
    drafted = running.submit(prompt, replace(running.ensemble.defaults, draft=draft), **options).wait()
    assert (drafted.ids, drafted.text, drafted.last.finish) == (plain.ids, plain.text, plain.last.finish)
    assert sum(went) > 0


def test_a_worker_killed_in_the_middle_of_a_draft_is_done_without(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "least_chance", lambda *costs: 0.2)  # a lead pays, whatever passes take here
    went = accepted_drafts(monkeypatch)
    until_killed = 0

    def act(tokens: int) -> None:
        nonlocal until_killed
        if tokens == 10:
            until_killed = sum(went)
            kill("almanac")

    answer = Answer(act)
    update = wait(ask(runtime, "forgiving", questions(1)[0], answer, "lingvo", ignore_eos=True, max_tokens=60))
    assert (update.finish, len(answer.ids)) == ("length", 60)
    assert set(update.departed) == {"almanac"}
    assert sum(went) > until_killed > 0
    until(lambda: not runtime.fuser.attendance.down)


@pytest.mark.alone
def test_a_member_that_is_killed_ends_its_sequences_within_a_second(runtime: Runtime) -> None:
    killed_at = 0.0

    def act(tokens: int) -> None:
        nonlocal killed_at
        if tokens == 10:
            kill("abacus")
            killed_at = time.monotonic()

    answer = ask(runtime, ENSEMBLE, questions(1)[0], Answer(act), ignore_eos=True, max_tokens=200)
    error = wait(answer).error
    assert answer.ended_at - killed_at < 1
    assert isinstance(error, UnavailableError)
    assert "'abacus' is down: its worker process was killed by SIGKILL" in str(error)
    with pytest.raises(UnavailableError) as refused:
        ask(runtime, ENSEMBLE, "Hello", Answer())
    assert (refused.value.retry_after or 0) >= 1
    until(lambda: not runtime.fuser.attendance.down)
    assert wait(ask(runtime, ENSEMBLE, "Hello", Answer())).finish


@pytest.mark.alone
def test_where_the_ensemble_degrades_a_sequence_goes_on_and_takes_the_member_back(runtime: Runtime) -> None:
    killed_at, next_token_at, was_down = 0.0, 0.0, False

    def act(tokens: int) -> None:
        nonlocal killed_at, next_token_at, was_down
        down = "almanac" in runtime.fuser.attendance.down
        was_down = was_down or down
        if tokens == 10:
            kill("almanac")
            killed_at = time.monotonic()
        if tokens == 13:  # one token may have been under way
            next_token_at = time.monotonic()
        if tokens > 13 and (down or not was_down):
            time.sleep(0.25)  # so that it lasts until the worker has loaded again

    answer = ask(runtime, "forgiving", questions(1)[0], Answer(act), ignore_eos=True, max_tokens=400)
    update = wait(answer)
    assert next_token_at - killed_at < 1
    assert update.finish == "length"
    assert update.departed == {"almanac": "its worker process was killed by SIGKILL"}
    assert 13 < update.returned["almanac"] < 400
    assert len(answer.ids) == 400


@pytest.mark.alone
def test_a_round_costs_the_slowest_member_and_little_more() -> None:
    """Three members in three processes whose steps are a fixed sleep; `make bench` says more."""
    runs = (hosting.run(steps=(0.01, 0.02, 0.03), batches=(1,), tokens=64) for _ in range(6))
    assert any(1 < rounds["1"]["ratio"] <= 1.15 for rounds in runs)  # what else runs on the machine only adds


def test_a_signal_to_all_lets_requests_finish_and_leaves_no_process(tmp_path: Path) -> None:
    model = yaml.safe_load(configuration("process"))["models"]["abacus"]
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"models": {"abacus": model}}))
    with subprocess.Popen(
        [*START, str(config), "--port", "0"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as server:
        try:
            url = server.stdout.readline().split()[-1]
            children = psutil.Process(server.pid).children(recursive=True)
            assert children
            body = {
                "model": "abacus",
                "messages": user("Hi"),
                "stream": True,
                "max_tokens": 300,
                "ignore_eos": True,
            }
            with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=LIMIT) as response:
                lines = response.iter_lines()
                next(lines)
                os.killpg(server.pid, signal.SIGTERM)
                for child in children:
                    child.send_signal(signal.SIGTERM)
                rest = [line for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            reasons = [json.loads(line.removeprefix("data: "))["choices"] for line in rest[:-1]]
            assert any(choice and choice[0]["finish_reason"] in ("stop", "length") for choice in reasons)
            assert server.wait(timeout=60) == 0
            assert "Traceback" not in server.stderr.read()
            assert not [child for child in children if child.is_running()]
        finally:
            server.kill()
