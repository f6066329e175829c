"""A remote member and a worker that is slow, or of another version, over a socket pair."""

import json
import socket
import threading
import time

import numpy as np
import pytest

from alignment.errors import ConfigError
from fusion.core import Capacity, Down, NextTokens
from fusion.members.hosts import codec, worker
from fusion.members.hosts.channel import Channel
from fusion.members.hosts.codec import dialect, encode
from fusion.members.hosts.messages import Answers, Broken, Load, Loaded
from fusion.members.hosts.remote import Patience, RemoteMember
from fusion.members.registry import EngineSpec
from tests.support.inbox import LIMIT, Inbox

SPEC = EngineSpec("nobody:loads", {})


class Played:
    """A worker whose end of the connection a thread of the test plays."""

    what = "worker"

    def __init__(self, play):
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        self.connection = theirs
        self.thread = threading.Thread(target=play, args=(theirs,))
        self.thread.start()

    def ended(self):
        return None

    def end(self, seconds):
        self.channel.close()
        self.thread.join(LIMIT)
        self.connection.close()
        return "ended"


def test_a_worker_that_sends_a_large_message_slowly_has_not_hung():
    """Its answers to pings wait behind the message."""
    answer = NextTokens(1, np.zeros((1000, 200), np.int32), np.zeros((1000, 200), np.float32))

    def play(connection):
        connection.recv(1 << 16)
        connection.sendall(encode(Loaded(Capacity(10, 100, 1), 9)))
        frame = encode(Answers([answer], 0.1))
        for at in range(0, len(frame), 1 + len(frame) // 30):
            connection.sendall(frame[at : at + 1 + len(frame) // 30])
            time.sleep(0.1)
        while connection.recv(1 << 16):  # pings
            pass

    inbox = Inbox()
    member = RemoteMember(
        "ada", SPEC, lambda wanted: Played(play), Patience(silence_seconds=2.0, restart_seconds=60)
    )
    assert member.wait(LIMIT)
    member.start(inbox)
    try:
        assert isinstance(inbox.wait_for(1)[0], NextTokens)
        down = inbox.wait_for(2)[1]  # of the silence that follows
        assert isinstance(down, Down)
        assert "said nothing for 2 seconds" in down.reason
    finally:
        member.stop()


def first_of(frame):
    """What a worker answers to this first frame."""
    ours, theirs = socket.socketpair()
    end = Channel(theirs)
    thread = threading.Thread(target=worker.serve, args=(end,))
    thread.start()
    ours.sendall(frame)
    channel, found = Channel(ours), []
    while not found:
        found = channel.receive(LIMIT)
    thread.join(LIMIT)
    channel.close()
    end.close()
    return found[0]


@pytest.mark.parametrize("difference", ["dialect", "a field more", "another message"])
def test_a_worker_of_another_version_is_refused_with_a_sentence(difference):
    load = Load("other" if difference == "dialect" else dialect(), "ada", 1.0, 20, "nobody:loads", {})
    frame = encode(load)
    if difference != "dialect":
        _, header = codec.SIZES.unpack_from(frame)
        content = json.loads(frame[codec.SIZES.size : codec.SIZES.size + header])
        if difference == "a field more":
            content[codec.MESSAGE].append(5)
        else:
            content[codec.MESSAGE][0] = "Begin"
        text = json.dumps(content).encode()
        text += b" " * (-(codec.SIZES.size + len(text)) % codec.ALIGNMENT)
        frame = codec.SIZES.pack(codec.SIZES.size + len(text), len(text)) + text
    answer = first_of(frame)
    assert isinstance(answer, Broken)
    assert "another version of Tutti" in answer.reason


def test_such_a_worker_keeps_the_server_from_starting():
    def play(connection):
        connection.recv(1 << 16)
        connection.sendall(encode(Broken("The worker has another version of Tutti")))

    member = RemoteMember("ada", SPEC, lambda wanted: Played(play))
    with pytest.raises(ConfigError, match="another version of Tutti"):
        member.wait(LIMIT)
