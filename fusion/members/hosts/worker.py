"""Worker: the other end of a remote member, an engine in a process of its own, stepped as in the server.

`python -m fusion.members.hosts.worker FD` is started by `fusion.members.hosts.process`; `serve` also runs inside
Ray's actors.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
from typing import Any

from alignment.errors import ConfigError, one_line
from fusion.core import Delivery, Member
from fusion.members.hosts.channel import Channel
from fusion.members.hosts.codec import dialect
from fusion.members.hosts.inline import InlineMember
from fusion.members.hosts.messages import Answers, Broken, Close, Load, Loaded, Logged, Ping, Pong, Stop
from fusion.members.registry import EngineSpec, load_engine

log = logging.getLogger(__name__)

FOREVER = 3600.0
LOOK_SECONDS = 0.5  # seconds between looks at whether the engine still works


def serve(channel: Channel) -> None:
    """Load the engine that the first message names, then handle messages until `Stop`.

    Raises:
        EOFError: the server is gone.
    """
    load = _first(channel)
    if load is None:
        channel.send(Broken("The worker has another version of Tutti than the server; install the same one there"))
        return
    logging.basicConfig(level=load.log_level, handlers=[_ServersLog(channel)], format="%(message)s")
    try:
        engine = load_engine(EngineSpec(load.engine, load.arguments))
    except Exception as error:
        if not isinstance(error, ConfigError):
            log.exception("the engine cannot be loaded")
        channel.send(Broken(one_sentence(error).rstrip(".")))
        return
    member = InlineMember(load.member, engine)

    def deliver(_: Member, what: Delivery) -> None:
        if isinstance(what, list):  # else it is down, which `trouble` tells
            channel.send(Answers(what, member.step_seconds))

    member.start(deliver)
    channel.send(Loaded(member.capacity, member.vocabulary_size))
    while True:
        if trouble := member.trouble(load.longest_step):
            channel.send(Broken(trouble.reason))
        for message in channel.receive(LOOK_SECONDS):
            match message:
                case list():
                    member.submit(message)
                case Close():
                    member.close(message.sequences)
                case Ping():
                    channel.send(Pong())
                case Stop():
                    member.stop()
                    return


def _first(channel: Channel) -> Load | None:
    """The first message; None where the server's messages are others than here."""
    messages: list[Any] = []
    try:
        while not messages:
            messages = channel.receive(FOREVER)
    except (KeyError, TypeError):  # an unknown message, or another number of fields
        return None
    load = messages[0]
    return load if isinstance(load, Load) and load.dialect == dialect() else None


class _ServersLog(logging.Handler):
    """Sends lines to the server's log."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self.channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self.channel.send(Logged(record.levelno, record.name, self.format(record)))


def one_sentence(error: Exception) -> str:
    """The message of an error: its own sentence if it is a ConfigError, otherwise its type and beginning."""
    if isinstance(error, ConfigError):
        return str(error)
    return f"The engine cannot be loaded: {type(error).__name__}: {one_line(error, 300)}"


def main() -> None:
    """Run in a process that the server has started; `sys.argv[1]` is the descriptor of the connection."""
    # Signals to the whole group are for the server, which lets requests finish and then stops its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":  # whatever happens to the server, nothing stays behind
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    try:
        serve(channel)
    except EOFError:  # a step that never ends must not keep the process, nor what the engine started
        os.killpg(0, signal.SIGKILL)
    channel.close()


if __name__ == "__main__":
    main()
