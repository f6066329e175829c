"""Request ids: every answer has one, every request a record, and a crash is answered with 500."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from time import perf_counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.errors import as_request_error
from server.http.paths import OPEN_PATHS, path_of
from server.http.refusals import refusal
from server.telemetry.logs import request_id
from server.telemetry.record import OnTokens, Record

log = logging.getLogger(__name__)

MAX_REQUEST_ID = 128
ID_HEADERS = ("x-request-id", "request-id")  # OpenAI's clients read the one, Anthropic's the other


def sane_id(given: str | None) -> str:
    """The id that a caller gave, where it can stand in headers and logs, else a new one."""
    given = given or ""
    sane = 0 < len(given) <= MAX_REQUEST_ID and given.isascii() and given.isprintable()
    return given if sane else uuid.uuid4().hex


class RequestId:
    """Puts `ID_HEADERS` on every answer, the caller's own id where it is sane, and keeps the request's record.

    It is the outermost middleware: it also answers 500 to exceptions that no other part caught (such an answer
    needs its id most of all), and calls `on_end` with the record once an answer is complete.
    """

    def __init__(self, app: ASGIApp, on_tokens: OnTokens, on_end: Callable[[Record], None]) -> None:
        self.app = app
        self.on_tokens = on_tokens
        self.on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and mark its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        record = Record(
            self.on_tokens,
            id=sane_id(given),
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
                for name in ID_HEADERS:
                    MutableHeaders(scope=message)[name] = record.id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            log.error("request %s to %r failed", record.id, scope["path"])
            if record.status is not None:
                raise
            await refusal(scope, as_request_error(error))(scope, receive, send_with_id)
        finally:
            if path_of(scope) not in OPEN_PATHS:
                record.ended = perf_counter()
                record.path = getattr(scope.get("route"), "path", None)
                record.key = scope["state"].get("key_digest")
                self.on_end(record)
