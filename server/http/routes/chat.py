"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from fusion import core
from fusion.core import Token
from server.http.generation import Choice, Generation
from server.http.protocol.body import StrictJsonRoute
from server.http.protocol.chat import ChatRequest, rendering
from server.http.protocol.chat_answer import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    Delta,
)
from server.http.protocol.common import Usage
from server.http.protocol.logprobs import chat_logprobs
from server.http.routes.submit import Asked
from server.http.service import Service


class ChatShape:
    """Answers as chat completions."""

    def __init__(self, generation: Generation, model: str, *, logprobs: bool) -> None:
        self.generation = generation
        self.model = model
        self.logprobs = logprobs
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def opening(self, choices: list[Choice]) -> Iterator[ChatChunk]:
        """The role of each choice."""
        for choice in choices:
            yield self._chunk(ChatChunkChoice(index=choice.index, delta=Delta(role="assistant", content="")))

    def chunks(self, choice: Choice, update: core.Delta) -> Iterator[ChatChunk]:
        """The new content, then how it ended. A round whose text is still held back may have nothing to say."""
        logprobs = self._logprobs(choice, update.tokens) if update.tokens else None
        if update.text or logprobs:
            delta = Delta(content=update.text)
            yield self._chunk(ChatChunkChoice(index=choice.index, delta=delta, logprobs=logprobs))
        if isinstance(update, core.End):
            yield self._chunk(
                ChatChunkChoice(
                    index=choice.index,
                    delta=Delta(),
                    finish_reason=update.finish,
                    stop_reason=update.stop_reason,
                    fusion=self.generation.report(choice),
                )
            )

    def closing(self, usage: Usage) -> ChatChunk:
        """The chunk of usage, which has no choices."""
        return self._chunk(usage=usage)

    def whole(self, choices: list[Choice], usage: Usage) -> ChatCompletion:
        """The answer in one piece."""
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[
                ChatChoice(
                    index=choice.index,
                    message=AnswerMessage(content=choice.text),
                    logprobs=self._logprobs(choice, choice.tokens),
                    finish_reason=choice.end.finish if choice.end else None,
                    stop_reason=choice.end.stop_reason if choice.end else None,
                    fusion=self.generation.report(choice),
                )
                for choice in choices
            ],
            usage=usage,
            system_fingerprint=self.generation.ensemble.fingerprint,
        )

    def _chunk(self, *choices: ChatChunkChoice, usage: Usage | None = None) -> ChatChunk:
        return ChatChunk(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=list(choices),
            usage=usage,
            system_fingerprint=self.generation.ensemble.fingerprint,
        )

    def _logprobs(self, choice: Choice, tokens: Sequence[Token]) -> ChatLogprobs | None:
        return chat_logprobs(tokens, self.generation.view(choice).tokenizer) if self.logprobs else None


def chat_router(service: Service) -> APIRouter:
    """The route, bound to what it serves."""
    router = APIRouter(route_class=StrictJsonRoute, tags=["chat"])

    @router.post("/v1/chat/completions", response_model=ChatCompletion)
    async def create_chat_completion(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation."""
        asked = Asked.of(service, body)
        ensemble, located = asked.ensemble, asked.located
        prompt = await run_in_threadpool(
            lambda: ensemble.encode_chat(**rendering(body.messages, body), locate=located)
        )
        _, logprobs = body.alternatives
        return await asked.answer(
            request,
            [prompt],
            lambda generation: ChatShape(generation, body.model, logprobs=logprobs is not None),
            param="messages",
        )

    return router
