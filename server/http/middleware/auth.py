"""Authentication by bearer key, and the flow that a request waits in."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.errors import UnauthorizedError
from server.http.paths import OPEN_PATHS, PAGE_PATHS, path_of
from server.http.refusals import refusal

KEYLESS = OPEN_PATHS | PAGE_PATHS.keys()


class BearerAuth:
    """Lets a request through when its bearer key is accepted.

    Digests are compared, all of them and in constant time, so that neither a key's length nor how much of it
    was right can be measured.
    """

    def __init__(self, app: ASGIApp, api_keys: Iterable[str]) -> None:
        self.app = app
        self.digests = [_digest(key.encode()) for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, or pass the request on."""
        if scope["type"] != "http" or path_of(scope) in KEYLESS or scope["method"] == "OPTIONS":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # Anthropic's clients send the key alone
        given = headers.get("authorization") or f"Bearer {headers.get('x-api-key', '')}"
        scheme, _, key = given.partition(" ")
        digest = _digest(key.strip().encode("latin-1"))  # headers arrive decoded as latin-1
        known = [hmac.compare_digest(digest, ours) for ours in self.digests]
        if scheme.lower() != "bearer" or not any(known):
            error = UnauthorizedError("The API key is missing or wrong; send it as 'Authorization: Bearer KEY'.")
            await refusal(scope, error)(scope, receive, send)
            return
        scope.setdefault("state", {})["key_digest"] = digest.hex()
        await self.app(scope, receive, send)


def flow_of(request: Request) -> str:
    """The flow of a request, which is one turn in the waiting line: its API key, or its address without keys."""
    digest: str | None = getattr(request.state, "key_digest", None)
    return digest or (request.client.host if request.client else "")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
