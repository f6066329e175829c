"""POST /v1/responses."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response

from server.http.protocol.body import StrictJsonRoute
from server.http.protocol.responses import ResponsesRequest, as_chat, callable_tools
from server.http.protocol.responses_answer import ResponseStream, as_response
from server.http.routes.chat import ChatShape, answer_chat
from server.http.routes.translated import TranslatedShape, chat_request, in_words_of
from server.http.service import Service
from server.http.streaming import STREAMS

NAMES = (
    (r"tools\[(\d+)\]\.function", r"tools[\1]"),
    (r"tool_choice\.allowed_tools", "tool_choice"),
    (r"response_format(\.json_schema\.schema)?", "text.format.schema"),
    ("reasoning_effort", "reasoning.effort"),
    (r"max_(completion_)?tokens", "max_output_tokens"),
    (r"messages\b.*", "input"),  # whose items are not the messages
)


def _shape(body: ResponsesRequest, chat: ChatShape) -> TranslatedShape:
    return TranslatedShape(chat, ResponseStream(body, chat.model), partial(as_response, body))


def responses_router(service: Service) -> APIRouter:
    """The route, bound to what it serves."""
    router = APIRouter(route_class=StrictJsonRoute, tags=["responses"])

    @router.post("/v1/responses", responses=STREAMS)
    async def create_response(request: Request, body: ResponsesRequest) -> Response:
        """Answer a conversation; nothing is stored."""
        fields, tools = await service.prepare(partial(as_chat, body)), callable_tools(body.tools)
        with in_words_of(NAMES, tools=(tool.place for tool in tools)):
            chat = await service.prepare(partial(chat_request, fields))
            return await answer_chat(service, request, chat, partial(_shape, body))

    return router
