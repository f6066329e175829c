"""Leaving while models load: SIGTERM ends the process cleanly if possible, otherwise at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_SECONDS = 5.0  # for threads that read weights, and for workers, to be ended in order


def leave(number: int, frame: FrameType | None) -> None:
    """SIGTERM, while loading or passed on by uvicorn after it has drained: a clean exit."""
    raise SystemExit(0)


@contextmanager
def ended_by_sigterm(grace: float = GRACE_SECONDS) -> Iterator[None]:
    """End the process within `grace` seconds of a SIGTERM that comes meanwhile; to be used on the main thread.

    Python runs signal handlers between two instructions of the main thread: loading may not come to the next for
    minutes, a `__del__` loses the exit, and a clean exit waits for threads that read weights. The number of a
    signal, though, is written to a descriptor as it arrives. Workers end with this process.
    """
    heard, told = socket.socketpair()
    told.setblocking(False)
    threading.Thread(target=_watch, args=(heard, grace), name="sigterm", daemon=True).start()
    before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        told.close()


def _watch(heard: socket.socket, grace: float) -> None:
    with heard:
        while numbers := heard.recv(64):
            if signal.SIGTERM in numbers:
                time.sleep(grace)
                os._exit(0)
