"""JSON bodies, read more strictly than by the standard library."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.types import Receive, Scope

from alignment.errors import InvalidRequestError

LARGE = 256 << 10  # bytes of a body that take milliseconds to parse and to check
# Both hold Python's lock nearly all the time, so that more threads would be no faster.
_reading = CapacityLimiter(2)


class StrictJsonRequest(Request):
    """Refuses what JSON does not have: NaN, Infinity, lone surrogates, bytes that are not UTF-8.

    It also refuses nesting too deep for a parser and integers too long for Python, instead of failing on them.
    A large body goes through `check` as well, beside the event loop.
    """

    def __init__(self, scope: Scope, receive: Receive, check: Callable[[Any], Any]) -> None:
        super().__init__(scope, receive)
        self._check = check

    async def json(self) -> Any:
        """The body, parsed."""
        body = await self.body()
        if len(body) <= LARGE:
            return _parsed(body)
        return await to_thread.run_sync(lambda: self._check(_parsed(body)), limiter=_reading)


def _parsed(body: bytes) -> Any:
    try:
        return from_json(body, allow_inf_nan=False)
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
            return await handler(StrictJsonRequest(request.scope, request.receive, self._checked))

        return handle

    def _checked(self, value: Any) -> Any:
        """A body as an object of the route's model, which FastAPI takes as it is."""
        if self.body_field is None or value is None:
            return value
        checked, errors = self.body_field.validate(value, loc=("body",))
        if errors:
            raise RequestValidationError(errors)
        return checked
