"""Connection: uvicorn's, with bounds on what comes before a request reaches the application.

Keys and the size of a body are looked at once the head of a request is complete. Until then nothing bounds it:
neither httptools nor uvicorn limits the size of headers, nor the time that they may take.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from alignment.errors import InvalidRequestError
from server.http.errors import error_body

MOST_BYTES = 64 << 10
"""Bytes of a request's head, and of anything else that is no body. What one read brings is not counted."""
SECONDS = 30.0  # until a head is complete, from the connection or from its first byte on


class Connection(HttpToolsProtocol):
    """A connection that is closed where a head is too large (431) or too slow."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unread = 0  # bytes since the last head or piece of a body
        self._read = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._forget_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and see whether it got anywhere."""
        self._read = False
        super().data_received(data)
        self._unread = 0 if self._read else self._unread + len(data)
        if self._unread > MOST_BYTES and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        """Wait for the rest of the head."""
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        """Hand the request on."""
        self._read = True
        self._forget_head()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Hand a piece of the body on."""
        self._read = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next head begins here."""
        self._read = True
        super().on_message_complete()

    def _await_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(SECONDS, self.transport.close)

    def _forget_head(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self) -> None:
        if self.cycle is None or self.cycle.response_complete:  # else an answer is on its way
            sentence = f"The headers are larger than {MOST_BYTES} bytes; send fewer or shorter ones."
            body = json.dumps(error_body(InvalidRequestError(sentence))).encode()
            fields = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[431] + fields.encode() + body)
        self.transport.close()
