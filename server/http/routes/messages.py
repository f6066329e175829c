"""POST /v1/messages and POST /v1/messages/count_tokens, as Anthropic's clients ask."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response

from server.http.protocol.body import StrictJsonRoute
from server.http.protocol.messages import CountTokensRequest, MessagesRequest, as_chat
from server.http.protocol.messages_answer import MessageStream, as_message
from server.http.routes.chat import ChatShape, answer_chat, prepared
from server.http.routes.submit import Asked
from server.http.routes.translated import Names, TranslatedShape, chat_request, in_words_of
from server.http.service import Service
from server.http.streaming import STREAMS

FORMAT = r"response_format(\.json_schema\.schema)?"
NAMES = (
    (r"tools\[(\d+)\]\.function\.parameters", r"tools[\1].input_schema"),
    (r"tools\[(\d+)\]\.function", r"tools[\1]"),
    (FORMAT, "output_config.format.schema"),
    ("reasoning_effort", "output_config.effort"),
    ("thinking_token_budget", "thinking.budget_tokens"),
    (r"stop\b", "stop_sequences"),
    (r"messages\[.*", "messages"),  # which are others: `system` is one, and so is each result of a tool
)


def _names(body: CountTokensRequest) -> Names:
    """The names of the fields, of which the format of the answer has two places."""
    return NAMES if body.output_format is None else ((FORMAT, "output_format.schema"), *NAMES)


def _shape(chat: ChatShape) -> TranslatedShape:
    events = MessageStream(chat.model, input_tokens=chat.generation.prompt_tokens)
    return TranslatedShape(chat, events, as_message)


def messages_router(service: Service) -> APIRouter:
    """The routes, bound to what they serve."""
    router = APIRouter(route_class=StrictJsonRoute, tags=["messages"])

    @router.post("/v1/messages", responses=STREAMS)
    async def create_message(request: Request, body: MessagesRequest) -> Response:
        """Answer a conversation."""
        fields = await service.prepare(partial(as_chat, body))
        with in_words_of(_names(body)):
            chat = await service.prepare(partial(chat_request, fields))
            return await answer_chat(service, request, chat, _shape)

    @router.post("/v1/messages/count_tokens")
    async def count_tokens(body: CountTokensRequest) -> dict[str, int]:
        """The number of the pivot's tokens that a conversation comes to."""
        fields = await service.prepare(partial(as_chat, body))

        def count() -> int:
            chat = chat_request(fields)
            asked = Asked.of(service, chat)
            return len(prepared(service, chat, asked, limited=False)[0].ids[asked.ensemble.pivot])

        with in_words_of(_names(body)):
            return {"input_tokens": await service.prepare(count)}

    return router
