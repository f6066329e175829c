"""The exception tree of all three packages.

::

    TuttiError
    ├── ConfigError        the server cannot start like this (exit code 2)
    └── RequestError       this request cannot be served (HTTP 4xx or 5xx)
        ├── InvalidRequest      400  the request is wrong; `param` names the field
        ├── NotFound            404  no such model
        ├── TooLarge            413  the body is over the limit
        ├── Overloaded          429  over capacity; `retry_after` seconds
        ├── NotImplementedYet   501  a feature of the API that Tutti does not have
        └── Unavailable         503  a member cannot answer; `retry_after` seconds where it may soon

Every message is one sentence, or a few, that say what is wrong and what to do.
"""

from __future__ import annotations

NO_CHAT_TEMPLATE = "no_chat_template"
"""The code of requests that are chats, to a model that has no template for them."""

CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
"""The code of requests whose prompt no member can hold."""


class TuttiError(Exception):
    """Base of every error that is meant to be read by a user."""


class ConfigError(TuttiError):
    """A configuration, checkpoint, tokenizer or device that the server cannot start with."""


class RequestError(TuttiError):
    """A request that cannot be served. `status` is the HTTP status, the rest follows OpenAI's error object."""

    status = 500
    type = "server_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class InvalidRequest(RequestError):
    """The request itself is wrong; sending it again will not help."""

    status = 400
    type = "invalid_request_error"


class NotFound(RequestError):
    """The named model or path does not exist."""

    status = 404
    type = "invalid_request_error"


class TooLarge(RequestError):
    """The body exceeds the configured limit."""

    status = 413
    type = "invalid_request_error"


class Overloaded(RequestError):
    """The waiting line is full; `retry_after` is in seconds."""

    status = 429
    type = "rate_limit_error"

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message, code="rate_limit_exceeded")
        self.retry_after = retry_after


class NotImplementedYet(RequestError):
    """A part of the OpenAI API that is not built."""

    status = 501
    type = "invalid_request_error"


class Unavailable(RequestError):
    """A member failed or the server is stopping."""

    status = 503
    type = "server_error"

    def __init__(self, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
