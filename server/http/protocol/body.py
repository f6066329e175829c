"""JSON bodies, read more strictly than by the standard library."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from alignment.errors import InvalidRequestError


class StrictJsonRequest(Request):
    """Refuses what JSON does not have: NaN, Infinity, lone surrogates, bytes that are not UTF-8.

    It also refuses nesting too deep for a parser and integers too long for Python, instead of failing on them.
    """

    async def json(self) -> Any:
        """The body, parsed."""
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise json.JSONDecodeError(str(error), "", 0) from error


def _is_untyped_by_a_page(request: Request) -> bool:
    """Return whether a browser sends a body without a type, for a page.

    A page of any origin may send that unasked, and a server without keys would answer.
    """
    by_a_page = "origin" in request.headers or "sec-fetch-site" in request.headers
    return request.method == "POST" and "content-type" not in request.headers and by_a_page


class StrictJsonRoute(APIRoute):
    """A route whose body is read as a `StrictJsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own handler, given our request."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if _is_untyped_by_a_page(request):
                raise InvalidRequestError("The body should be sent with Content-Type: application/json.")
            return await handler(StrictJsonRequest(request.scope, request.receive))

        return handle
