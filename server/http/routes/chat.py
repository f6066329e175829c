"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from alignment.text.stops import control_tokens
from fusion import core
from fusion.core import FinishReason, Prompt, Token
from fusion.ensemble import View
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
from server.http.protocol.fusion import rounds_report
from server.http.protocol.logprobs import chat_logprobs, prompt_logprobs
from server.http.protocol.sampling import prompt_room
from server.http.protocol.structured import Around, constraints_of
from server.http.reading import Reading
from server.http.reasoning import ReasoningTags
from server.http.routes.submit import Asked
from server.http.service import Service
from server.http.streaming import STREAMS, ServerSentEvents, Shape
from server.http.tools.offer import Offer, conversations, format_for
from server.http.tools.parser import ToolParser


class ChatShape(ServerSentEvents):
    """Answers as chat completions."""

    def __init__(
        self, generation: Generation, model: str, body: ChatRequest, *, reading: Callable[[View], Reading]
    ) -> None:
        self.generation = generation
        self.body = body
        self._reading = reading
        self._readings: dict[int, Reading] = {}  # by choice
        self.model = model
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def idle(self) -> ChatChunk:
        """A chunk without choices."""
        return self._chunk()

    def opening(self, choices: list[Choice]) -> Iterator[ChatChunk]:
        """The role of each choice."""
        for choice in choices:
            chunk = self._chunk(ChatChunkChoice(index=choice.index, delta=Delta(role="assistant", content="")))
            if choice is choices[0]:
                chunk.prompt_token_ids, chunk.prompt_text = self._prompt_ids(choice), self._prompt_text(choice)
            yield chunk

    def chunks(self, choice: Choice, update: core.Delta) -> Iterator[ChatChunk]:
        """The new content, then how it ended. A round whose text is still held back may have nothing to say."""
        logprobs = self._logprobs(choice, update.tokens) if update.tokens else None
        reading = self._reading_of(choice)
        deltas = reading.push(update.text, update.tokens, last=isinstance(update, core.End))
        ids, rounds = self._ids(update.tokens) or None, rounds_report(update)
        if (logprobs or ids or rounds) and not deltas:
            deltas = [{"content": ""}]
        for fields in deltas:
            yield self._chunk(
                ChatChunkChoice(
                    index=choice.index, delta=Delta(**fields), logprobs=logprobs, token_ids=ids, fusion=rounds
                )
            )
            logprobs = ids = rounds = None
        if isinstance(update, core.End):
            yield self._chunk(
                ChatChunkChoice(
                    index=choice.index,
                    delta=Delta(),
                    finish_reason=_finish(update.finish, reading),
                    stop_reason=update.stop_reason,
                    fusion=self.generation.report(choice),
                )
            )

    def closing(self, usage: Usage) -> ChatChunk:
        """The chunk of usage, which has no choices."""
        return self._chunk(usage=usage)

    def whole(self, choices: list[Choice], usage: Usage) -> ChatCompletion:
        """The answer in one piece."""
        wanted = self.body.prompt_logprobs
        tokenizer = self.generation.view(choices[0]).tokenizer
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[self._choice(choice) for choice in choices],
            usage=usage,
            system_fingerprint=self.generation.ensemble.fingerprint,
            prompt_logprobs=(None if wanted is None else prompt_logprobs(choices[0].prompt, wanted, tokenizer)),
            prompt_token_ids=self._prompt_ids(choices[0]),
            prompt_text=self._prompt_text(choices[0]),
        )

    def _reading_of(self, choice: Choice) -> Reading:
        if choice.index not in self._readings:
            self._readings[choice.index] = self._reading(self.generation.view(choice))
        return self._readings[choice.index]

    def _ids(self, tokens: Sequence[Token]) -> list[int] | None:
        return [token.chosen.id for token in tokens] if self.body.return_token_ids else None

    def _prompt_ids(self, choice: Choice) -> list[int] | None:
        if not self.body.return_token_ids:
            return None
        return self.generation.prompt_of(choice).ids[self.generation.view(choice).pivot]

    def _prompt_text(self, choice: Choice) -> str | None:
        if not self.body.return_prompt_text:
            return None
        view = self.generation.view(choice)
        return view.tokenizer.decode(self.generation.prompt_of(choice).ids[view.pivot])

    def _choice(self, choice: Choice) -> ChatChoice:
        reading, at = self._reading_of(choice), 0
        for number, (text, count) in enumerate(zip(choice.texts, choice.counts, strict=True), 1):
            reading.push(text, choice.tokens[at : at + count], last=number == len(choice.texts))
            at += count
        thoughts = reading.reasoning or None
        message = AnswerMessage(
            content=reading.content or (None if reading.calls else ""),
            reasoning=thoughts,
            reasoning_content=thoughts,
            tool_calls=[call.as_dict() for call in reading.calls] or None,
        )
        return ChatChoice(
            index=choice.index,
            message=message,
            logprobs=self._logprobs(choice, choice.tokens),
            finish_reason=_finish(choice.end.finish if choice.end else None, reading),
            stop_reason=choice.end.stop_reason if choice.end else None,
            token_ids=self._ids(choice.tokens),
            fusion=self.generation.report(choice),
        )

    def _chunk(self, *choices: ChatChunkChoice, usage: Usage | None = None) -> ChatChunk:
        return ChatChunk(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=list(choices),
            usage=self.generation.usage if self.body.continuous_usage else usage,
            system_fingerprint=self.generation.ensemble.fingerprint,
        )

    def _logprobs(self, choice: Choice, tokens: Sequence[Token]) -> ChatLogprobs | None:
        return chat_logprobs(tokens, self.generation.view(choice).tokenizer) if self.body.logprobs else None


def _finish(finish: FinishReason | None, reading: Reading) -> Literal["stop", "length", "tool_calls"] | None:
    return "tool_calls" if finish == "stop" and reading.calls else finish


def chat_router(service: Service) -> APIRouter:
    """The route, bound to what it serves."""
    router = APIRouter(route_class=StrictJsonRoute, tags=["chat"])

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAMS)
    async def create_chat_completion(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation."""
        return await answer_chat(service, request, body)

    return router


async def answer_chat(
    service: Service,
    request: Request,
    body: ChatRequest,
    shape: Callable[[ChatShape], Shape] = lambda chat: chat,
) -> Response:
    """Answer a conversation, in the shape that `shape` makes of a chat completion's.

    Raises:
        Exception: the request is wrong, or failed before anything was sent.
    """
    asked = Asked.of(service, body)
    prompt, reading = await run_in_threadpool(lambda: prepared(service, body, asked))
    return await asked.answer(
        request,
        [prompt],
        lambda generation: shape(ChatShape(generation, asked.model, body, reading=reading)),
        param="messages",
    )


def prepared(service: Service, body: ChatRequest, asked: Asked) -> tuple[Prompt, Callable[[View], Reading]]:
    """The prompt, and what reads each of the answers, which are in the pivot's tokens.

    Raises:
        InvalidRequestError: the conversation or its tools are wrong, or a template refuses them.
    """
    settings, ensemble, offer = service.settings, asked.ensemble, Offer.of(body)
    conversation = rendering(body.messages, body, settings.chat_template_kwargs)
    tags = ReasoningTags(*settings.reasoning_tags) if settings.reasoning_tags else None
    history = any(message.tool_calls or message.role == "tool" for message in body.messages)
    shown = format = None
    if offer.tools or history:
        supports = {name: service.tool_support(model.tokenizer) for name, model in ensemble.models.items()}
        format = format_for(supports[ensemble.pivot], settings.tool_format)
        shown = conversations(ensemble, conversation["messages"], offer.tools, supports, format)
    room, place = prompt_room(body, ensemble.context), asked.fusion.context_place
    prompt = ensemble.encode_chat(
        **conversation, locate=asked.located, limited=room is None, shown=shown, place=place
    )
    if room is not None:
        prompt = ensemble.shortened(prompt, room, body.truncation_side or "left")
    tokenizer = ensemble.tokenizer
    opened = tags is not None and tags.opened_by(tokenizer.decode(prompt.ids[ensemble.pivot][-8:]))
    thinks = tags is not None and (opened or tags.open in str(tokenizer.hf.chat_template))
    thoughts = settings.reasoning_tags if thinks else None
    around = Around(offer, format, thoughts, opened, marks=thoughts or ())
    prompt = replace(prompt, constraints=constraints_of(body, ensemble, around))
    marks = [*([format.opener] if format and offer.tools else []), *(settings.reasoning_tags or ())]

    def reading(view: View) -> Reading:
        return Reading(
            parser=ToolParser(format, offer.tools) if format is not None and offer.tools else None,
            tags=tags,
            opened=opened,
            marks=control_tokens(view.tokenizer, filter(None, marks)),
        )

    return prompt, reading
