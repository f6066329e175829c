"""A worker as a process of this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from fusion.members.hosts.channel import Channel


class ProcessWorker:
    """A process started afresh, in a session of its own, connected by a socket pair.

    Its standard output and error both go to the server's standard error; the server's standard output is kept
    for results. To be made on a thread that lives as long as the worker may, since Linux ends the worker with the
    thread that started it.
    """

    what = "worker process"

    def __init__(self, environment: Mapping[str, str]) -> None:
        own, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  (nothing of it comes from users)
                [sys.executable, "-m", "fusion.members.hosts.worker", str(theirs.fileno())],
                env=child_environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.channel = Channel(own)

    def ended(self) -> str | None:
        """Return how the process ended, as the rest of a sentence; None while it lives."""
        # Not reaped yet: while it is there, so is its process group, and no other process can have the number.
        info = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if info is None:
            return None
        if info.si_code == os.CLD_EXITED:
            return f"ended with exit code {info.si_status}"
        return f"was killed by {signal.Signals(info.si_status).name}"

    def end(self, seconds: float) -> str:
        """Wait `seconds` for the process to end by itself, then kill what is left of it; return how it ended."""
        deadline = time.monotonic() + seconds
        while (how := self.ended()) is None and time.monotonic() < deadline:
            time.sleep(0.002)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.channel.close()
        return how or "did not end and was killed"


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a Python process that imports what this one can; `extra` stands above this one's own."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry), **extra}


def process(environment: Mapping[str, str]) -> Callable[[Callable[[], bool]], ProcessWorker]:
    """Return a `Launch` for workers in their own process, with these environment variables beside the server's."""
    return lambda _: ProcessWorker(environment)
