"""GET /v1/models."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from server.http.protocol.common import AnswerModel


class ModelFusion(AnswerModel):
    """The members that decode together under this name, and the pivot, in whose vocabulary they do."""

    pivot: str
    members: list[str]


class ModelCard(AnswerModel):
    """One served name, with what OpenAI's, vLLM's and Anthropic's clients read of it.

    `parents` are the models that it was distilled from, if it was.
    """

    id: str
    object: Literal["model"] = "model"
    type: Literal["model"] = "model"
    display_name: str
    lifecycle: Literal["active"] = "active"
    created: int
    created_at: datetime
    owned_by: Literal["tutti"] = "tutti"
    root: str
    parent: None = None
    max_model_len: int
    fusion: ModelFusion
    parents: list[str] | None = None


class ModelList(AnswerModel):
    """All served names, on one page."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
    has_more: Literal[False] = False
    first_id: str
    last_id: str
