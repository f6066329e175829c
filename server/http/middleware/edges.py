"""What every answer has in common: an id, a bounded body, and no stack trace."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from time import perf_counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.errors import TooLargeError, as_request_error, error_response
from server.http.middleware.auth import OPEN_PATHS
from server.telemetry.logs import request_id
from server.telemetry.metrics.requests import RequestMetrics
from server.telemetry.record import Record

log = logging.getLogger(__name__)

MAX_REQUEST_ID = 128


class RequestId:
    """Puts `x-request-id` on every answer, the caller's own where it is sane, and keeps the request's record.

    It is the outermost, so it also answers 500 to what no other part caught (an answer to a crash needs its id
    most of all), and knows when an answer is complete: `on_end` is then called with the record.
    """

    def __init__(self, app: ASGIApp, metrics: RequestMetrics, on_end: Callable[[Record], None]) -> None:
        self.app = app
        self.metrics = metrics
        self.on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and mark its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        sane = 0 < len(given) <= MAX_REQUEST_ID and given.isascii() and given.isprintable()
        record = Record(
            self.metrics,
            id=given if sane else uuid.uuid4().hex,
            method=scope["method"],
            client=scope["client"][0] if scope.get("client") else "",
            traceparent=headers.get("traceparent"),
            tracestate=headers.get("tracestate"),
        )
        scope.setdefault("state", {})["record"] = record
        request_id.set(record.id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = record.id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            log.error("request %s to %r failed", record.id, scope["path"])
            if record.status is not None:
                raise
            await error_response(as_request_error(error))(scope, receive, send_with_id)
        finally:
            if scope["path"] not in OPEN_PATHS:
                record.ended = perf_counter()
                record.path = getattr(scope.get("route"), "path", None)
                record.key = scope["state"].get("key_digest")
                self.on_end(record)


class BodyLimit:
    """Answers 413 to bodies over the limit, before reading them where their length is declared.

    A chunked body declares none: it is read up to the limit and then handed on whole.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 413, or pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if "transfer-encoding" in headers:
            body = await self._read(receive)
            if body is not None:
                await self.app(scope, _replay(body, receive), send)
                return
        elif int(headers.get("content-length", "0")) <= self.limit:
            await self.app(scope, receive, send)
            return
        refusal = TooLargeError(f"The request body is larger than the {self.limit} bytes this server accepts.")
        # The rest of the body is not wanted, so the connection cannot be used again.
        await error_response(refusal, {"Connection": "close"})(scope, receive, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body, or None as soon as it is over the limit."""
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            body += message.get("body", b"")
            if len(body) > self.limit:
                return None
            more = message.get("more_body", False)
        return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
