"""Refusals: errors as answers in the shape of the API whose path was asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from alignment.errors import NotFoundError, RequestError
from server.http.errors import CLIENT_CLOSED_REQUEST, UnauthorizedError, as_request_error, error_body, status_of
from server.http.paths import path_of, unknown_path
from server.http.protocol import messages_answer


def refusal(scope: Scope, error: RequestError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer to a request that cannot be served: Anthropic's below /v1/messages, else OpenAI's."""
    headers = dict(headers or {})
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if not error.may_repeat:
        headers["x-should-retry"] = "false"  # OpenAI's and Anthropic's clients repeat every 5xx else
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    if path_of(scope).startswith("/v1/messages"):
        record = scope.get("state", {}).get("record")
        body = messages_answer.error_body(error, record.id if record is not None else None)
    else:
        body = error_body(error)
    return JSONResponse(body, status_of(error), headers)


def install_handlers(app: FastAPI, paths: Sequence[str]) -> None:
    """Answer errors raised while routing, validating or handling with an error object; a 404 names `paths`."""

    async def handle(request: Request, error: Exception) -> Response:
        headers = error.headers if isinstance(error, HTTPException) else None
        status = error.status_code if isinstance(error, HTTPException) else None
        if isinstance(error.__cause__, ClientDisconnect):
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        if isinstance(error.__cause__, RequestValidationError):  # of a large body, found while it was read
            error = error.__cause__
        if status == 405 and request.method == "OPTIONS":
            # What the path answers, and no more: pages of other origins are allowed by `cors_origins` alone.
            return Response(status_code=204, headers=headers)
        if status == 404:
            error = NotFoundError(unknown_path(path_of(request.scope), paths), code="path_not_found")
        return refusal(request.scope, as_request_error(error), headers)

    for kind in (RequestError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)
