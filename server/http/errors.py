"""Every error of every route as OpenAI's error object: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from alignment.errors import InvalidRequest, NotFound, Overloaded, RequestError, Unavailable
from server.settings.complaints import expectation

logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499  # nginx's; nobody is left to read it


class ErrorDetail(BaseModel):
    """What went wrong, in the words of the OpenAI API."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


class Unauthorized(RequestError):
    """The bearer key is missing or wrong."""

    status = 401
    type = "invalid_request_error"


class MethodNotAllowed(RequestError):
    """The path exists, but not with this method."""

    status = 405
    type = "invalid_request_error"


def as_request_error(error: Exception) -> RequestError:
    """The error as its sender may see it; anything unexpected is logged and loses its details."""
    match error:
        case RequestError():
            return error
        case RequestValidationError():
            return invalid_field(error.errors())
        case HTTPException(status_code=404):
            return NotFound("There is no such path.", code="path_not_found")
        case HTTPException(status_code=405):
            return MethodNotAllowed("The path does not answer this method.", code="method_not_allowed")
        case _:
            logger.error("a request failed unexpectedly", exc_info=error)
            return RequestError("The server failed to answer this request; its log says why.")


def error_body(error: RequestError) -> dict[str, Any]:
    """OpenAI's error object."""
    detail = ErrorDetail(message=error.message, type=error.type, param=error.param, code=error.code)
    return ErrorResponse(error=detail).model_dump()


def error_response(error: RequestError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The HTTP answer to a request that cannot be served."""
    headers = dict(headers or {})
    if isinstance(error, Overloaded | Unavailable) and error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(error), error.status, headers)


def invalid_field(problems: Sequence[Any]) -> InvalidRequest:
    """The first of pydantic's complaints as one sentence that names the field."""
    problem = problems[0]
    if problem["type"] == "json_invalid":
        return InvalidRequest(f"The body is not valid JSON: {problem['ctx']['error']}.", code="invalid_json")
    param = field_name(problem["loc"])
    if not param:
        return InvalidRequest("The body should be a JSON object, sent with Content-Type: application/json.")
    if problem["type"] == "missing":
        return InvalidRequest(f"{param} is missing.", param=param)
    expected = expectation(problem)
    if expected is None:
        return InvalidRequest(f"{param}: {problem['msg']}.", param=param)
    given = problem["input"]
    told = expected.startswith("should be") and (given is None or isinstance(given, str | int | float))
    return InvalidRequest(f"{param} {expected}{f', not {shorten(given)}' if told else ''}.", param=param)


def field_name(location: Sequence[str | int]) -> str:
    """("body", "messages", 0, "role") as messages[0].role."""
    name = ""
    for part in location[1:]:
        name += f"[{part}]" if isinstance(part, int) else f".{part}"
    return shorten_text(name.removeprefix("."))


def shorten(value: object) -> str:
    """A value from a request, short enough for a message."""
    return shorten_text(repr(value))


def shorten_text(text: str, limit: int = 100) -> str:
    """The text, cut to `limit` characters."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def install_handlers(app: FastAPI) -> None:
    """Answer errors raised while routing, validating or handling with an error object."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        headers = error.headers if isinstance(error, HTTPException) else None
        return error_response(as_request_error(error), headers)

    for kind in (RequestError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)
