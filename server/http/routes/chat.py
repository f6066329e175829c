"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from fusion import core
from fusion.core import Prompt, SamplingConstraint, Token
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
from server.http.protocol.fusion import rounds_report
from server.http.protocol.logprobs import chat_logprobs
from server.http.protocol.sampling import prompt_room
from server.http.protocol.structured import Around, budget_of, constraints_of
from server.http.reading import Reading
from server.http.routes.shape import OpenAIShape
from server.http.routes.submit import Asked
from server.http.service import Service
from server.http.streaming import STREAMS, Shape
from server.http.tools.offer import Offer, conversations, format_for
from server.http.tools.parser import ToolParser


class ChatShape(OpenAIShape[ChatRequest, ChatChunk]):
    """Answers as chat completions."""

    prefix = "chatcmpl"
    of_chunks = ChatChunk

    def __init__(
        self, generation: Generation, model: str, body: ChatRequest, *, reading: Callable[[View], Reading]
    ) -> None:
        super().__init__(generation, model, body)
        self._reading = reading
        self._readings: dict[int, Reading] = {}  # by choice

    def opening(self, choices: list[Choice]) -> Iterator[ChatChunk]:
        """The role of each choice."""
        for choice in choices:
            chunk = self.chunk(ChatChunkChoice(index=choice.index, delta=Delta(role="assistant", content="")))
            if choice is choices[0]:
                chunk.prompt_token_ids, chunk.prompt_text = self.prompt_ids(choice), self._prompt_text(choice)
            yield chunk

    def chunks(self, choice: Choice, update: core.Delta) -> Iterator[ChatChunk]:
        """The new content, then how it ended. A round whose text is still held back may have nothing to say."""
        logprobs = self._logprobs(choice, update.tokens) if update.tokens else None
        reading = self._reading_of(choice)
        deltas = reading.push(update.text, update.tokens, last=isinstance(update, core.End))
        choice.thoughts = reading.thoughts
        ids, rounds = self.ids(update.tokens) or None, rounds_report(update)
        if (logprobs or ids or rounds) and not deltas:
            deltas = [{"content": ""}]
        for fields in deltas:
            yield self.chunk(
                ChatChunkChoice(
                    index=choice.index, delta=Delta(**fields), logprobs=logprobs, token_ids=ids, fusion=rounds
                )
            )
            logprobs = ids = rounds = None
        if isinstance(update, core.End):
            yield self.chunk(ChatChunkChoice(index=choice.index, delta=Delta(), **self._ending(choice)))

    def whole(self, choices: list[Choice]) -> ChatCompletion:
        """The answer in one piece."""
        read = [self._choice(choice) for choice in choices]
        return ChatCompletion(
            choices=read,
            prompt_logprobs=self.prompt_logprobs(choices[0]),
            prompt_token_ids=self.prompt_ids(choices[0]),
            prompt_text=self._prompt_text(choices[0]),
            **self.envelope(self.generation.usage),  # which knows of thoughts now
        )

    def _reading_of(self, choice: Choice) -> Reading:
        if choice.index not in self._readings:
            self._readings[choice.index] = self._reading(self.generation.view(choice))
        return self._readings[choice.index]

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
        choice.thoughts = reading.thoughts
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
            token_ids=self.ids(choice.tokens),
            **self._ending(choice),
        )

    def _ending(self, choice: Choice) -> dict[str, Any]:
        """How a choice ended: one that calls tools does not stop."""
        ending = self.ending(choice)
        called = ending["finish_reason"] == "stop" and self._reading_of(choice).calls
        return ending | {"finish_reason": "tool_calls"} if called else ending

    def _logprobs(self, choice: Choice, tokens: Sequence[Token]) -> ChatLogprobs | None:
        return chat_logprobs(tokens, self.generation.view(choice).tokenizer) if self.body.logprobs else None


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
    prompt, reading = await service.prepare(lambda: prepared(service, body, asked))
    return await asked.answer(
        request,
        [prompt],
        lambda generation: shape(ChatShape(generation, asked.model, body, reading=reading)),
        param="messages",
    )


def prepared(
    service: Service, body: ChatRequest, asked: Asked, *, limited: bool = True
) -> tuple[Prompt, Callable[[View], Reading]]:
    """The prompt, and what reads each of the answers, which are in the pivot's tokens.

    A prompt longer than any context is refused before it is read, unless it is not `limited`.

    Raises:
        InvalidRequestError: the conversation or its tools are wrong, or a template refuses them.
    """
    settings, tags, ensemble, offer = service.settings, service.reasoning_tags, asked.ensemble, Offer.of(body)
    conversation = rendering(body.messages, body, settings.chat_template_kwargs)
    history = any(message.tool_calls or message.role == "tool" for message in body.messages)
    shown = format = None
    if offer.tools or history:
        supports = {name: service.tool_support(model.tokenizer) for name, model in ensemble.models.items()}
        format = format_for(supports[ensemble.pivot], settings.tool_format)
        shown = conversations(ensemble, conversation["messages"], offer.tools, supports, format)
    room, place = prompt_room(body, ensemble), asked.fusion.context_place
    # A prompt that is only counted is not scored.
    prompt = ensemble.encode_chat(
        **conversation, locate=asked.located and limited, limited=limited, room=room, shown=shown, place=place
    )
    begun: dict[str, str | None] = {}  # by pivot, the thoughts that its prompt ends inside of
    constraints: dict[str, SamplingConstraint] = {}
    for pivot, view in ensemble.views.items():
        begun[pivot] = None
        if tags is not None and conversation["continue_final_message"]:
            begun[pivot] = tags.begun_in(conversation["messages"][-1]["content"])
        elif tags is not None and tags.opened_by(view.tokenizer.decode(prompt.ids[pivot][-8:])):
            begun[pivot] = ""
        opened = begun[pivot] is not None
        thinks = tags is not None and (opened or tags.open in str(view.tokenizer.hf.chat_template))
        thoughts = tags if thinks else None
        around = Around(offer, format, thoughts, opened, marks=thoughts or ())
        budget = budget_of(body, tags, begun[pivot])
        constraints |= constraints_of(body, replace(ensemble, views={pivot: view}), around, budget=budget)
    prompt = replace(prompt, constraints=constraints)
    marks = [*(format.marks if format and offer.tools else ()), *(tags or ())]

    def reading(view: View) -> Reading:
        before, parser = begun[view.pivot], None
        if format is not None and offer.callable:
            parser = ToolParser(format, offer.callable, parallel=offer.parallel)
        return Reading(
            parser=parser,
            tags=tags,
            opened=before is not None,
            midway=bool(before and before.strip()),
            hidden=body.include_reasoning is False,
            marks=view.tokenizer.control_tokens(filter(None, marks)),
        )

    return prompt, reading
