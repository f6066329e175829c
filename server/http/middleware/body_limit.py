"""Body limit: larger requests are answered with 413."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.errors import TooLargeError
from server.http.refusals import refusal


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
        error = TooLargeError(
            f"The request body is larger than the {self.limit} bytes this server accepts: send less."
        )
        # The rest of the body is not wanted, so the connection cannot be used again.
        await refusal(scope, error, {"Connection": "close"})(scope, receive, send)

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
