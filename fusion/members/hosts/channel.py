"""Channel: messages over a stream socket, sent from any thread without waiting, received by one.

A sender must not be held up by a peer that does not read. Bytes that the socket does not take at once wait here,
and the receiving thread sends them as soon as there is room.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections import deque
from contextlib import suppress
from typing import Any

from fusion.members.hosts.codec import decode, encode, frame_size

CHUNK = 1 << 18


class Channel:
    """One end of a connection. `receive` and `close` belong to one thread.

    Attributes:
        heard: whether anything arrived in the last `receive`, be it a part of a message.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._lock = threading.Lock()
        self._unsent: deque[memoryview] = deque()
        self._received = bytearray()
        self.heard = False
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._poll = select.poll()
        self._poll.register(self._woken, select.POLLIN)
        self._closed = False

    def send(self, message: Any) -> None:
        """Send a message, now or when there is room. To a peer that is gone, nothing is sent."""
        frame = memoryview(encode(message))
        with self._lock:
            if self._closed:
                return
            if not self._unsent:
                frame = self._push(frame)
            if frame:
                self._unsent.append(frame)
                self._ring()

    def wake(self) -> None:
        """Let `receive` return at once."""
        with self._lock:
            if not self._closed:
                self._ring()

    def receive(self, seconds: float) -> list[Any]:
        """Return the messages that have arrived; wait at most `seconds` for the first.

        Raises:
            EOFError: the peer is gone, and all that it sent has been received.
        """
        self.heard = False
        self._poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        events = dict(self._poll.poll(seconds * 1000))
        if self._woken in events:
            os.read(self._woken, CHUNK)
        happened = events.get(self._socket.fileno(), 0)
        if happened & select.POLLOUT:
            with self._lock:
                while self._unsent and not (rest := self._push(self._unsent[0])):
                    self._unsent.popleft()
                if self._unsent:
                    self._unsent[0] = rest
        if happened & ~select.POLLOUT:
            try:
                data = self._socket.recv(CHUNK)
            except BlockingIOError:
                return []
            except OSError:
                data = b""
            if not data:
                raise EOFError
            self._received += data
            self.heard = True
        return self._messages()

    def close(self) -> None:
        """Give up the connection."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._socket.close()
                os.close(self._woken)
                os.close(self._wake)

    def _messages(self) -> list[Any]:
        messages, data = [], self._received
        while (size := frame_size(data)) is not None and size <= len(data):
            messages.append(decode(bytes(data[:size])))
            del data[:size]
        return messages

    def _push(self, frame: memoryview) -> memoryview:
        """Send as much of a frame as the socket takes; return the rest."""
        try:
            return frame[self._socket.send(frame) :]
        except BlockingIOError:
            return frame
        except OSError:  # the peer is gone, as `receive` will find
            return frame[:0]

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self._wake, b"\0")
