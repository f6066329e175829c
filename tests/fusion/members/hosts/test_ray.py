"""A member whose engine runs in an actor of a Ray cluster: here one of this machine alone."""

import os
import socket
import threading
import time
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest

from alignment.errors import ConfigError
from fusion.core import Advance, Down, NextTokens, Up
from fusion.members.hosts.remote import Patience, RemoteMember
from fusion.members.registry import EngineSpec
from tests.support.drafted_answers import drafts_change_nothing
from tests.support.hosted_ensembles import hosted_ensemble
from tests.support.inbox import Inbox
from tests.support.worker_engines import HERE, SumEngine, expected, sums

ray = pytest.importorskip("ray")

from fusion.members.hosts import ray as host  # noqa: E402
from fusion.members.hosts.ray import Actor, RayWorker, ray_actor  # noqa: E402

# Long, so that it is the end of a worker that is noticed and not its silence.
PATIENCE = Patience(silence_seconds=60, restart_seconds=0.05)

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray leaves sockets and files to the garbage collector


def member_of(spec, name="ada", **options):
    ask = {"num_cpus": 0.1, "num_gpus": 0, "resources": {}, "environment": {}, "placement_seconds": 30}
    return RemoteMember(name, spec, ray_actor(address="local", **(ask | options)), PATIENCE)


@pytest.fixture(scope="module")
def cluster():
    """Started by two members that begin at the same time."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    pair = [member_of(sums()) for _ in range(2)]
    try:
        for member in pair:
            member.wait()
    except ConfigError as error:
        pytest.skip(f"Ray does not start here: {error}")
    finally:
        for member in pair:
            member.stop()
    yield
    ray.shutdown()


@pytest.fixture
def inbox():
    return Inbox()


@pytest.fixture
def launch(cluster):
    members = []

    def start(spec, **options):
        members.append(member_of(spec, **options))
        members[-1].wait()
        return members[-1]

    yield start
    for member in members:
        member.stop()


def test_an_actor_answers_like_any_worker_and_is_replaced_when_it_dies(launch, inbox):
    member = launch(sums(context=77))
    assert member.capacity.context == 77
    member.start(inbox)
    member.submit([Advance(1, 0, [1, 2, 3])])
    ids, logprobs = expected([1, 2, 3])
    assert np.array_equal(inbox.wait_for(1)[0].ids[0], ids)
    assert np.array_equal(inbox.received[0].logprobs[0], logprobs)
    began = time.monotonic()
    member.submit([Advance(1, 0, [SumEngine.LEAVE])])
    down, up = inbox.wait_for(3)[1:]
    assert inbox.times[1] - began < 30
    assert isinstance(down, Down)
    assert down.reason.startswith("its Ray actor ended")
    assert isinstance(up, Up)
    member.submit([Advance(1, 0, [5])])
    assert isinstance(inbox.wait_for(4)[3], NextTokens)


@pytest.mark.alone
def test_a_round_trip_takes_far_less_than_a_call_of_an_actor(launch, inbox):
    member = launch(sums())
    member.start(inbox)
    seconds = []
    for number in range(20):
        began = time.perf_counter()
        member.submit([Advance(1, 0, [1, 2])])
        inbox.wait_for(number + 1)
        seconds.append(time.perf_counter() - began)
    assert sorted(seconds)[10] < 0.005


def test_what_the_engine_objects_to_is_said(launch):
    with pytest.raises(ConfigError, match=r"^Lower cache_tokens\.$"):
        launch(EngineSpec(f"{HERE}:refuse", {"sentence": "Lower cache_tokens."}))


def test_drafts_over_actors_change_no_answer(launch, tokenizers, run, monkeypatch):
    running = run(hosted_ensemble(tokenizers, lambda name, spec: launch(spec, name=name), "lingvo"))
    drafts_change_nothing(running, tokenizers["lingvo"].vocabulary_size, monkeypatch)


def test_a_cluster_without_room_is_one_sentence(launch):
    with pytest.raises(
        ConfigError, match=r"no node of the Ray cluster had room .*'unicorn': 1.* within 0.5 seconds"
    ):
        launch(sums(), resources={"unicorn": 1}, placement_seconds=0.5)


def test_the_environment_is_the_actors(launch, tmp_path):
    launch(EngineSpec(f"{HERE}:report", {"path": str(tmp_path / "r")}), environment={"OMP_NUM_THREADS": "3"})
    assert "OMP_NUM_THREADS=3" in (tmp_path / "r").read_text().splitlines()


def test_nobody_without_the_secret_is_served(cluster):
    actor = Actor(b"s" * 32)
    where = actor.listen()
    served = []

    def serve():
        try:
            actor.serve()
        except EOFError:
            served.append("the friend, to the end")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with socket.create_connection(where) as stranger:
        stranger.sendall(b"x" * 32)
        stranger.settimeout(5)
        assert stranger.recv(1) == b""
    with socket.create_connection(where) as friend:
        friend.sendall(b"s" * 32)
        friend.settimeout(0.2)
        with pytest.raises(TimeoutError):
            friend.recv(1)
    thread.join(5)
    assert served == ["the friend, to the end"]


@pytest.fixture
def killed(monkeypatch):
    """The actors that were killed, on a cluster of none."""
    found = []
    monkeypatch.setattr(ray, "kill", found.append)
    monkeypatch.setattr(ray, "remote", MagicMock())
    monkeypatch.setattr(host, "_connect", lambda address: None)
    return found


def launched():
    ask = {"num_cpus": 0.1, "num_gpus": 0, "resources": {}, "environment": {}, "placement_seconds": 30}
    return ray_actor(address="local", **ask)(lambda: True)


@pytest.mark.parametrize("fails", ["_placed", "setsockopt", "sendall"])
def test_an_actor_that_is_not_reached_is_killed(killed, monkeypatch, fails):
    def fail(*_):
        raise OSError("no route")

    connection = MagicMock(**({fails: fail} if fails != "_placed" else {}))
    connection.__enter__.return_value = connection
    monkeypatch.setattr(host, "_placed", fail if fails == "_placed" else lambda *_: ("10.0.0.1", 5))
    monkeypatch.setattr(socket, "create_connection", lambda *_: connection)
    with pytest.raises(OSError if fails == "_placed" else ConfigError, match="no route"):
        launched()
    assert len(killed) == 1
    assert connection.__exit__.called == (fails != "_placed")


def test_an_actor_is_killed_and_its_channel_closed_whatever_ray_says_of_it(killed, monkeypatch):
    def wait(*_, **__):
        raise RuntimeError("the cluster is gone")

    monkeypatch.setattr(ray, "wait", wait)
    channel = SimpleNamespace(close=MagicMock())
    with pytest.raises(RuntimeError, match="the cluster is gone"):
        RayWorker("actor", "running", channel).end(1.0)
    assert killed == ["actor"]
    assert channel.close.called
