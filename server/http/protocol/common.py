"""Base models of requests and answers: strict types, finite numbers, one readable complaint per field."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError


class RequestModel(BaseModel):
    """A JSON object of a request: "1" is no number, NaN neither; fields we do not know are kept in `extra`."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())


class AnswerModel(BaseModel):
    """A JSON object of an answer."""

    model_config = ConfigDict(protected_namespaces=())


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


Strings = Annotated[str | list[str], expected("a string or a list of strings")]


class Usage(AnswerModel):
    """Token counts, in the pivot's tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
