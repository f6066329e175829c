"""Base models of requests and answers: strict types, finite numbers, one readable complaint per field."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError


class RequestModel(BaseModel):
    """A JSON object of a request: "1" is no number, NaN neither; fields we do not know are kept in `extra`."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers(cls, values: Any) -> Any:
        """Numbers such as 8.0 as integers: JSON has one kind of number, and some clients write all of them so."""
        if not isinstance(values, dict):
            return values
        return {
            name: _whole(value) if isinstance(value, float | list) and name in cls.model_fields else value
            for name, value in values.items()
        }


class AnswerModel(BaseModel):
    """A JSON object of an answer."""

    model_config = ConfigDict(protected_namespaces=())


def _whole(value: Any) -> Any:
    if isinstance(value, list):
        return [_whole(each) if isinstance(each, float) else each for each in value]
    # beyond 2**53 a double does not say which integer was meant
    return int(value) if abs(value) <= 2**53 and value.is_integer() else value


def expected(what: str) -> WrapValidator:
    """One complaint ("Input should be {what}") in place of one per alternative of a union."""

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValueError as error:
            raise PydanticCustomError("expected", "Input should be {what}", {"what": what}) from error

    return WrapValidator(validate)


def is_none(value: object) -> bool:
    """Leaves a field out of an answer that has nothing to say there."""
    return value is None


Item = TypeVar("Item")
Listed = Annotated[list[Item], Field(fail_fast=True)]
"""A list in a request. Only the first wrong item is told: a complaint for each of a million takes seconds in which
nobody is served."""

MAX_PARTS = 4096


def _counted(value: Any) -> Any:
    if isinstance(value, list) and sum(map(_parts, value)) > MAX_PARTS:
        what = f"at most {MAX_PARTS} messages, parts of messages and calls"
        raise PydanticCustomError("expected", "Input should hold {what}", {"what": what})
    return value


def _parts(message: Any) -> int:
    """What a message counts for: the parts of its content, and its calls."""
    lists = [message.get("content"), message.get("tool_calls")] if isinstance(message, dict) else []
    return max(1, sum(len(each) for each in lists if isinstance(each, list)))


few = BeforeValidator(_counted)
"""Bounds messages, the parts of their contents and their calls, before each takes its moment to be checked."""

Strings = Annotated[str | Listed[str], expected("a string or a list of strings")]


class PromptLogprob(AnswerModel):
    """A token that may stand at a place of the prompt. `rank` 1 is the likeliest there, None one not listed."""

    logprob: float
    rank: int | None
    decoded_token: str


# For each token of the prompt, by id: it and the likeliest in its place. Nothing predicts the first: null.
PromptLogprobs = list[dict[int, PromptLogprob] | None]


class PromptTokensDetails(AnswerModel):
    """`cached_tokens` of the prompt were in the pivot's prefix cache."""

    cached_tokens: int = 0


class CompletionTokensDetails(AnswerModel):
    """`reasoning_tokens` of the answers were thoughts."""

    reasoning_tokens: int = 0


class Usage(AnswerModel):
    """Token counts, in the pivot's tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails()
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()


class Envelope(AnswerModel):
    """The fields around the choices of a completion, or of one event of a stream."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Any]
    usage: Usage | None = Field(default=None, exclude_if=is_none)
    system_fingerprint: str
