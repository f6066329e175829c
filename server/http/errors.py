"""Errors on the wire: one table of status and type, and OpenAI's error object that every route answers with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from alignment.errors import (
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PromptTooLongError,
    RequestError,
    UnavailableError,
    UnsupportedError,
    field_error,
)
from server.settings.complaints import dotted, expectation

log = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499  # nginx's; the client has gone


class ErrorDetail(BaseModel):
    """The content of OpenAI's error object."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


class UnauthorizedError(RequestError):
    """The bearer key is missing or wrong."""


class MethodNotAllowedError(RequestError):
    """The path exists, but not with this method."""


class TooLargeError(RequestError):
    """The body exceeds the configured limit."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The HTTP status and OpenAI's error type of an error, and its code where the error names none."""

    status: int
    type: str
    code: str | None = None


ANSWERS: dict[type[RequestError], Answer] = {
    InvalidRequestError: Answer(400, "invalid_request_error"),
    PromptTooLongError: Answer(400, "invalid_request_error"),
    UnauthorizedError: Answer(401, "invalid_request_error", "invalid_api_key"),
    NotFoundError: Answer(404, "invalid_request_error"),
    MethodNotAllowedError: Answer(405, "invalid_request_error", "method_not_allowed"),
    TooLargeError: Answer(413, "invalid_request_error", "request_too_large"),
    OverloadedError: Answer(429, "rate_limit_error", "rate_limit_exceeded"),
    RequestError: Answer(500, "server_error"),
    UnsupportedError: Answer(400, "invalid_request_error", "not_implemented"),
    UnavailableError: Answer(503, "server_error"),
}


def status_of(error: Exception) -> int:
    """The HTTP status of an error; 500 for any that no user was meant to see."""
    return ANSWERS[type(error) if isinstance(error, RequestError) else RequestError].status


def as_request_error(error: Exception) -> RequestError:
    """The error as its sender may see it; anything unexpected is logged and loses its details."""
    match error:
        case RequestError():
            return error
        case RequestValidationError():
            return invalid_field(error.errors())
        case HTTPException(status_code=405, headers=headers):
            allowed = sorted((headers or {}).get("Allow", "another").split(", "))
            return MethodNotAllowedError(f"The path does not answer this method: use {' or '.join(allowed)}.")
        case HTTPException(status_code=status) if 400 <= status < 500:
            return InvalidRequestError(f"{str(error.detail).rstrip('.')}.")
        case _:
            log.error("a request failed unexpectedly", exc_info=error)
            return RequestError("The server failed to answer this request; its log says why.")


def error_body(error: RequestError) -> dict[str, Any]:
    """OpenAI's error object."""
    answer = ANSWERS[type(error)]
    detail = ErrorDetail(
        message=error.message, type=answer.type, param=error.param, code=error.code or answer.code
    )
    return ErrorResponse(error=detail).model_dump()


def invalid_field(problems: Sequence[Any]) -> InvalidRequestError:
    """The first of pydantic's complaints as one sentence that names the field."""
    problem = problems[0]
    if problem["type"] == "json_invalid":
        return InvalidRequestError(f"The body is not valid JSON: {problem['ctx']['error']}.", code="invalid_json")
    param = shorten_text(dotted(problem["loc"][1:]))  # without "body"
    if not param:
        return InvalidRequestError("The body should be a JSON object, sent with Content-Type: application/json.")
    if problem["type"] == "missing":
        return field_error(param, "is missing.")
    expected = expectation(problem)
    if expected is None:
        return InvalidRequestError(f"{param}: {problem['msg']}.", param=param)
    given = problem["input"]
    shown = expected.startswith("should be") and (given is None or isinstance(given, str | int | float))
    return field_error(param, f"{expected}{f', not {shorten(given)}' if shown else ''}.")


def not_built(param: str, sentence: str) -> InvalidRequestError:
    """The error of a field that asks for what is not built: its name begins the sentence."""
    return field_error(param, sentence, code="not_implemented")


def unknown_type(where: str, kind: object, why: str) -> InvalidRequestError:
    """The error of an object in a request, at `where`, whose type is none that is understood there."""
    sentence = f"{where} is of type {shorten(kind)}, {why}"
    return InvalidRequestError(sentence, param=f"{where}.type", code="not_implemented")


def shorten(value: object) -> str:
    """A value from a request, short enough for a message."""
    return shorten_text(repr(value))


def shorten_text(text: str) -> str:
    """The text, cut to 100 characters."""
    return text if len(text) <= 100 else text[:97] + "..."
