"""POST /v1/responses."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from server.http.protocol.body import StrictJsonRoute
from server.http.protocol.common import Usage
from server.http.protocol.responses import ResponsesRequest, as_chat
from server.http.protocol.responses_answer import ResponseStream, as_response
from server.http.routes.chat import answer_chat
from server.http.routes.translated import TranslatedShape, chat_request, in_words_of
from server.http.service import Service
from server.http.streaming import STREAMS

NAMES = (
    (r"tools\[(\d+)\]\.function", r"tools[\1]"),
    (r"response_format(\.json_schema\.schema)?", "text.format.schema"),
    ("reasoning_effort", "reasoning.effort"),
    (r"max_(completion_)?tokens", "max_output_tokens"),
    ("messages$", "input"),
)


class ResponseTranslator(ResponseStream):
    """A chat's deltas as events of a response."""

    def __init__(self, request: ResponsesRequest, model: str) -> None:
        super().__init__(request, model)
        self.request = request

    def end(self, finish: str, usage: Usage, stop_reason: str | int | None) -> list[dict[str, Any]]:
        """The last events."""
        return self.finish(finish, usage.model_dump())

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The response of a chat completion."""
        return as_response(self.request, answer)


def responses_router(service: Service) -> APIRouter:
    """The route, bound to what it serves."""
    router = APIRouter(route_class=StrictJsonRoute, tags=["responses"])

    @router.post("/v1/responses", responses=STREAMS)
    async def create_response(request: Request, body: ResponsesRequest) -> Response:
        """Answer a conversation; nothing is stored."""
        with in_words_of(NAMES):
            chat = chat_request(as_chat(body))
            return await answer_chat(
                service,
                request,
                chat,
                lambda shape: TranslatedShape(shape, ResponseTranslator(body, shape.model)),
            )

    return router
