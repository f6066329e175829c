"""GET /v1/models."""

from __future__ import annotations

from typing import Literal

from server.http.protocol.common import AnswerModel


class ModelFusion(AnswerModel):
    """The members that decode together under this name, and the pivot, in whose vocabulary they do."""

    pivot: str
    members: list[str]


class ModelCard(AnswerModel):
    """One served name; `parents` are the models that it was distilled from, if it was."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["tutti"] = "tutti"
    root: str
    parent: None = None
    max_model_len: int
    fusion: ModelFusion
    parents: list[str] | None = None


class ModelList(AnswerModel):
    """All served names."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
