"""The exception tree of all packages. An error carries facts; the HTTP layer decides their form on the wire.

::

    TuttiError
    ├── ConfigError              the configuration, a checkpoint or a device has to be changed first
    └── RequestError             this request cannot be served
        ├── InvalidRequestError  the request is wrong; `param` names the field
        │   └── PromptTooLongError   its prompt has more tokens than a context holds
        ├── NotFoundError        there is no such model or path
        ├── UnsupportedError     a feature of the OpenAI API that Tutti does not have
        ├── OverloadedError      over capacity; `retry_after` seconds
        └── UnavailableError     a member failed, or the server stops; `retry_after` seconds where it comes back

Every message says what is wrong and what to do, in one sentence or a few. `server` adds the errors that only it
can raise.
"""

from __future__ import annotations

NO_CHAT_TEMPLATE = "no_chat_template"
"""The code of requests that are chats, to a model that has no template for them."""

CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
"""The code of requests whose prompt no member can hold."""


class TuttiError(Exception):
    """Base of every error that is meant to be read by a user."""


class ConfigError(TuttiError):
    """A configuration, checkpoint, tokenizer or device that cannot be used as it is."""


class RequestError(TuttiError):
    """A request that cannot be served.

    Attributes:
        message: what is wrong and what to do.
        param: the field of the request that is wrong, where it is one.
        code: a stable name of this error for programs, where it has one.
        retry_after: seconds after which the same request may succeed; None where that is not known.
        may_repeat: whether a client may send the same request again unasked.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        may_repeat: bool = True,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after
        self.may_repeat = may_repeat


class InvalidRequestError(RequestError):
    """The request itself is wrong; sending it again will not help."""


class PromptTooLongError(InvalidRequestError):
    """The prompt alone has more tokens than a member's context holds.

    Attributes:
        tokens: that it has at the least.
        limit: the most that it may have.
    """

    def __init__(self, message: str, *, tokens: int, limit: int, param: str | None = None) -> None:
        super().__init__(message, param=param, code=CONTEXT_LENGTH_EXCEEDED)
        self.tokens = tokens
        self.limit = limit


class NotFoundError(RequestError):
    """The named model or path does not exist."""


class UnsupportedError(RequestError):
    """A part of the OpenAI API that is not built."""


class OverloadedError(RequestError):
    """The waiting line is full."""

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message, retry_after=retry_after)


class UnavailableError(RequestError):
    """A member failed or the program is stopping."""


def field_error(param: str, sentence: str, *, code: str | None = None) -> InvalidRequestError:
    """The error of a request whose field `param` is wrong: its name begins the sentence."""
    return InvalidRequestError(f"{param} {sentence}", param=param, code=code)


def one_line(error: BaseException | str, limit: int = 200) -> str:
    """The message of another library's error as a part of a sentence: one line of at most `limit` characters."""
    return " ".join(str(error).split())[:limit].rstrip(". ")
