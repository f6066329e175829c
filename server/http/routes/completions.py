"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from fastapi import APIRouter, Request, Response

from alignment.errors import InvalidRequestError, field_error
from fusion.core import Delta, End, Prompt, Token
from fusion.sequence.thoughts import Budget
from server.http.generation import Choice, Generation
from server.http.protocol.body import StrictJsonRoute
from server.http.protocol.completions import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    check_best_of,
    check_prompt_alone,
    most_in_one_request,
    prompts,
)
from server.http.protocol.fusion import rounds_report
from server.http.protocol.logprobs import CompletionText
from server.http.protocol.sampling import prompt_room
from server.http.protocol.structured import budget_of, constraints_of
from server.http.routes.shape import OpenAIShape
from server.http.routes.submit import Asked
from server.http.service import Service
from server.http.streaming import STREAMS


class CompletionShape(OpenAIShape[CompletionRequest, Completion]):
    """Answers as text completions. `echo` holds the text that each choice begins with, if it begins with one."""

    prefix = "cmpl"
    of_chunks = Completion

    def __init__(
        self, generation: Generation, model: str, body: CompletionRequest, *, echo: Sequence[str] = ()
    ) -> None:
        super().__init__(generation, model, body)
        self.logprobs = body.logprobs is not None
        self.echo = echo
        self._sent: dict[int, CompletionText] = {}  # by choice

    def opening(self, choices: list[Choice]) -> Iterator[Completion]:
        """Nothing: a text has no role."""
        return iter(())

    def chunks(self, choice: Choice, update: Delta) -> Iterator[Completion]:
        """The new text, then how it ended. A round whose text is still held back may have nothing to say."""
        text = update.text
        if self.echo and len(choice.texts) == 1:
            text = self.echo[choice.index] + text
        logprobs = None
        if self.logprobs and (update.prompt or update.tokens):
            if choice.index not in self._sent:
                self._sent[choice.index] = self._text_of(choice)
            logprobs = self._sent[choice.index].logprobs(self._echoed(update.prompt), update.tokens)
        ids, rounds = self.ids(update.tokens) or None, rounds_report(update)
        if text or logprobs or ids or rounds:
            first = len(choice.texts) == 1
            yield self.chunk(
                CompletionChoice(
                    index=choice.index,
                    text=text,
                    logprobs=logprobs,
                    token_ids=ids,
                    prompt_token_ids=self.prompt_ids(choice) if first else None,
                    fusion=rounds,
                )
            )
        if isinstance(update, End):
            yield self.chunk(CompletionChoice(index=choice.index, text="", **self.ending(choice)))

    def whole(self, choices: list[Choice]) -> Completion:
        """The answer in one piece."""
        texts = [
            CompletionChoice(
                index=choice.index,
                text=(self.echo[choice.index] if self.echo else "") + choice.text,
                logprobs=self._logprobs(choice),
                token_ids=self.ids(choice.tokens),
                prompt_token_ids=self.prompt_ids(choice),
                prompt_logprobs=self.prompt_logprobs(choice),
                **self.ending(choice),
            )
            for choice in choices
        ]
        return self.chunk(*texts, usage=self.generation.usage)

    def _logprobs(self, choice: Choice) -> CompletionLogprobs | None:
        if not self.logprobs:
            return None
        return self._text_of(choice).logprobs(self._echoed(choice.prompt), choice.tokens)

    def _echoed(self, prompt: Sequence[Token]) -> list[Token]:
        """The tokens of a prompt as `echo` reports them, which may be scored for `prompt_logprobs` alone."""
        if not self.echo:
            return []
        return [replace(token, top=token.top[: self.body.logprobs]) for token in prompt]

    def _text_of(self, choice: Choice) -> CompletionText:
        generation = self.generation
        view = generation.view(choice)
        if not self.echo:
            return CompletionText(view.tokenizer)
        prompt = generation.prompt_of(choice)
        places = prompt.located[view.pivot] if prompt.located is not None else None
        return CompletionText(view.tokenizer, self.echo[choice.index], places)


def completions_router(service: Service) -> APIRouter:
    """The route, bound to what it serves."""
    router = APIRouter(route_class=StrictJsonRoute, tags=["completions"])
    most = service.max_prompts

    @router.post("/v1/completions", response_model=Completion, responses=STREAMS)
    async def create_completion(request: Request, body: CompletionRequest) -> Response:
        """Go on from a text, or from several."""
        check_best_of(body)
        check_prompt_alone(body)
        asked = Asked.of(service, body)
        ensemble, n = asked.ensemble, asked.choices

        special, room = body.add_special_tokens is not False, prompt_room(body, ensemble)
        tokenizer = ensemble.tokenizer

        def cut(prompt: str | list[int]) -> str | list[int]:
            """A prompt with no more of the pivot's tokens than `room`."""
            if room is None:
                return prompt
            ids = tokenizer.encode(prompt, add_special_tokens=special) if isinstance(prompt, str) else prompt
            if len(ids) <= room.tokens:
                return prompt
            ids = tokenizer.shortened(ids, room)
            return tokenizer.text_of(ids) if isinstance(prompt, str) and ensemble.chooses_pivot else ids

        def encode(prompt: str | list[int]) -> Prompt:
            """A prompt as its members read it, within `room` each: others may spell it in more tokens."""
            options: dict[str, Any] = {
                "add_special_tokens": special,
                "locate": asked.located,
                "room": room,
            }
            if isinstance(prompt, str):
                return ensemble.encode_text(prompt, **options)
            if ensemble.chooses_pivot:
                raise field_error(
                    "prompt",
                    f"is token ids, but {ensemble.name} has no fixed pivot whose they could be; send text.",
                )
            return ensemble.encode_ids(prompt, **options)

        def budget(prompt: str | list[int]) -> Budget | None:
            tags = service.reasoning_tags
            text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
            return budget_of(body, tags, tags.begun_in(text) if tags else None)

        def prepared() -> tuple[list[Prompt], list[str]]:
            """The prompts, and the text that each choice begins with, if it is to begin with its prompt's."""
            texts = [cut(text) for text in prompts(body, most)]
            if len(texts) * n > most:
                raise InvalidRequestError(
                    f"{len(texts)} prompts with n {n} are {len(texts) * n} sequences; {most_in_one_request(most)}",
                    param="prompt",
                )
            written = [text if isinstance(text, str) else tokenizer.text_of(text) for text in texts if body.echo]
            constraints = cache(lambda budget: constraints_of(body, ensemble, budget=budget))
            encoded = [replace(encode(text), constraints=constraints(budget(text))) for text in texts]
            return encoded, [text for text in written for _ in range(n)]

        encoded, echo = await service.prepare(prepared)
        return await asked.answer(
            request,
            encoded,
            lambda generation: CompletionShape(generation, asked.model, body, echo=echo),
            param="prompt",
        )

    return router
