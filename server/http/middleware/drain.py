"""Draining at shutdown: new requests are answered with 503 while those in progress finish."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from fusion.loop.line import stopping
from server.http.paths import OPEN_PATHS, path_of
from server.http.refusals import refusal


@dataclass(slots=True)
class Lifecycle:
    """The state of the server process, on its event loop's thread."""

    draining: bool = False
    in_progress: int = 0


class Drain:
    """Answers 503 to requests that come while the server drains, and counts those in progress.

    The server keeps listening, because a load balancer goes on sending until it has noticed: its requests get an
    answer that sends them to another replica, not a refused connection.
    """

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self.app = app
        self.lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 503, or pass the request on."""
        if scope["type"] != "http" or path_of(scope) in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        if self.lifecycle.draining:
            scope["state"]["record"].draining = True
            await refusal(scope, stopping(), {"Connection": "close"})(scope, receive, send)
            return
        self.lifecycle.in_progress += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.lifecycle.in_progress -= 1
