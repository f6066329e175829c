"""Forks: Python programs started from a process that has imported the server and what it needs.

Importing torch and transformers takes most of a start. One process imports them once; each program is a fork of
it, with arguments, environment, folder, output, exit code and process group of its own. What is read while a
process or its modules load (`MALLOC_*`, `HF_HOME`) needs a new interpreter instead.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, Self

REPOSITORY = Path(__file__).parents[2]

FORKED = """
import json, os, runpy, socket, sys
import server.http.app, server.loading, server.commands.serve
import fusion.members.transformers.engine
from transformers import GPTNeoXForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM

def begin(arguments, environment, folder, descriptors):
    os.setsid()
    os.chdir(folder)
    for number, descriptor in enumerate(descriptors, 1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    kind, program, *rest = arguments
    sys.argv = [kind, *rest]
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(program, {"__name__": "__main__"})

def serve(line):
    while True:
        text, descriptors, _, _ = socket.recv_fds(line, 1 << 20, 2)
        if not text:
            return
        message = json.loads(text)
        if isinstance(message, int):
            ended, status = os.waitpid(message, os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        else:
            answer = os.fork()
            if answer == 0:
                line.close()
                return begin(*message, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        line.send(json.dumps(answer).encode())

serve(socket.socket(fileno=int(sys.argv[1])))
"""


@cache
def _line() -> socket.socket:
    """Leads to the process that is forked, which ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", FORKED, str(theirs.fileno())],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _ask(message: Any, descriptors: Sequence[int] = ()) -> Any:
    socket.send_fds(_line(), [json.dumps(message).encode()], descriptors)
    answer = _line().recv(1 << 10)
    assert answer, "the process that is forked has ended"
    return json.loads(answer)


def _opened(path: Path | None) -> tuple[IO[str] | None, int]:
    """Where to read what is written, unless it goes into a file, and where to write it."""
    if path is not None:
        return None, os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    reading, writing = os.pipe()
    return open(reading), writing


class Fork:
    """A running `python -m MODULE ...` or `python -c PROGRAM ...`, used like a `subprocess.Popen` in text mode.

    Args:
        environment: all its variables; those of this process by default.
        output, errors: files for what it writes; by default it is read from `stdout` and `stderr`.
    """

    def __init__(
        self,
        *arguments: str | Path,
        environment: Mapping[str, str] | None = None,
        folder: Path = REPOSITORY,
        output: Path | None = None,
        errors: Path | None = None,
    ) -> None:
        self.returncode: int | None = None
        self.stdout, out = _opened(output)
        self.stderr, err = _opened(errors)
        variables = dict(os.environ if environment is None else environment)
        self.pid: int = _ask([[str(one) for one in arguments], variables, str(folder)], [out, err])
        os.close(out)
        os.close(err)

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            self.returncode = _ask(self.pid)
        return self.returncode

    def wait(self, timeout: float = 120) -> int:
        """Its exit code, once it has ended.

        Raises:
            TimeoutExpired: it has not after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
