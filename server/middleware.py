"""What every answer has in common: an id, a bounded body, and no stack trace."""

from __future__ import annotations

import logging
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alignment.errors import TooLarge
from server.errors import as_request_error, error_response

logger = logging.getLogger(__name__)

MAX_REQUEST_ID = 128


class RequestId:
    """Puts `x-request-id` on every answer, the caller's own where it is sane; outermost.

    Because it is the outermost, it also answers 500 to what no other part caught: an answer to a crash needs
    its id most of all.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and mark its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get("x-request-id", "")
        if not (0 < len(request_id) <= MAX_REQUEST_ID and request_id.isascii() and request_id.isprintable()):
            request_id = uuid.uuid4().hex
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            logger.error("request %s to %r failed", request_id, scope["path"])
            if started:
                raise
            await error_response(as_request_error(error))(scope, receive, send_with_id)


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
        refusal = TooLarge(
            f"The request body is larger than the {self.limit} bytes this server accepts.",
            code="request_too_large",
        )
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
