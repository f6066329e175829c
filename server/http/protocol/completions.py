"""POST /v1/completions: the request and its answers."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from alignment.errors import UnsupportedError, field_error
from server.http.errors import shorten
from server.http.protocol.common import AnswerModel, Envelope, Listed, PromptLogprobs, expected, is_none
from server.http.protocol.fusion import FusionFields, FusionReport, RoundsReport
from server.http.protocol.sampling import SamplingFields

Prompts = Annotated[
    str | Listed[str] | Listed[int] | Listed[Listed[int]],
    expected("a string, a list of strings, a list of token ids or a list of such lists"),
]


class CompletionRequest(SamplingFields):
    """The body of a text completion. Token ids are the pivot's."""

    default_max_tokens: ClassVar[int | None] = 16

    model: str | None = None
    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    add_special_tokens: bool | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None
    fusion: FusionFields | None = None

    @property
    def alternatives(self) -> tuple[str, int | None]:
        """`logprobs` is the number itself."""
        return "logprobs", self.logprobs

    @property
    def prompt_alternatives(self) -> int | None:
        """With `echo`, at least as many as for the answer."""
        asked = [self.logprobs if self.echo else None, self.prompt_logprobs]
        return max((number for number in asked if number is not None), default=None)

    @property
    def prompt_field(self) -> str:
        """As above."""
        return "echo" if self.prompt_logprobs is None else "prompt_logprobs"


def prompts(body: CompletionRequest, limit: int) -> list[str] | list[list[int]]:
    """The prompts one by one.

    Raises:
        InvalidRequestError: there is none, or more than `limit`.
    """
    several = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if not several:
        raise field_error("prompt", "is an empty list; give at least one prompt.")
    if isinstance(several[0], int):
        return [several]
    if len(several) > limit:
        raise field_error("prompt", f"holds {len(several)} prompts; {most_in_one_request(limit)}")
    return several


def most_in_one_request(limit: int) -> str:
    """What to do about more sequences than `limit`, as the end of a sentence."""
    return (
        f"send at most {limit} in one request, which is four fifths of server.max_waiting, or raise that setting."
    )


def check_prompt_alone(body: CompletionRequest) -> None:
    """`max_tokens` 0 asks for the prompt alone.

    Raises:
        InvalidRequestError: it does without `echo`, so that there would be nothing to answer.
    """
    if body.max_tokens == 0 and not body.echo:
        raise field_error("max_tokens", "should be at least 1 without echo: there would be nothing to answer.")


def check_best_of(body: CompletionRequest) -> None:
    """`best_of` may only say what `n` says.

    Raises:
        InvalidRequestError: it is less than `n`.
        UnsupportedError: it is more.
    """
    n = body.n or 1
    if body.best_of is not None and body.best_of < n:
        raise field_error("best_of", f"should be at least n, which is {shorten(n)}.")
    if body.best_of is not None and body.best_of > n:
        raise UnsupportedError(
            "best_of larger than n is not supported yet; use n and choose among its answers.",
            param="best_of",
        )


class CompletionLogprobs(AnswerModel):
    """Parallel lists, one entry per token. `text_offset` counts characters from the start of the answer.

    Nothing predicts the first token of a prompt that is echoed: it has no log-probability and no alternatives.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(AnswerModel):
    """One of `n` answers to one of the prompts."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = Field(default=None, exclude_if=is_none)
    prompt_token_ids: list[int] | None = Field(default=None, exclude_if=is_none)
    prompt_logprobs: PromptLogprobs | None = Field(default=None, exclude_if=is_none)
    fusion: FusionReport | RoundsReport | None = Field(default=None, exclude_if=is_none)


class Completion(Envelope):
    """The whole answer, or one event of a stream; `usage` is in the answer and in the last event."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
