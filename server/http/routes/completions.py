"""POST /v1/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from alignment.errors import InvalidRequestError
from fusion.core import Delta, End, Prompt
from server.http.generation import Choice, Generation
from server.http.protocol.body import StrictJsonRoute
from server.http.protocol.common import Usage
from server.http.protocol.completions import (
    Completion,
    CompletionChoice,
    CompletionRequest,
    check_best_of,
    check_prompt_alone,
    prompts,
)
from server.http.protocol.fusion import rounds_report
from server.http.protocol.logprobs import CompletionText
from server.http.protocol.structured import constraint_of
from server.http.routes.submit import Asked
from server.http.service import Service
from server.http.streaming import ServerSentEvents


class CompletionShape(ServerSentEvents):
    """Answers as text completions. `echo` holds the text that each choice begins with, if it begins with one."""

    def __init__(self, generation: Generation, model: str, *, logprobs: bool, echo: Sequence[str] = ()) -> None:
        self.generation = generation
        self.model = model
        self.logprobs = logprobs
        self.echo = echo
        self.id = f"cmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self._sent: dict[int, CompletionText] = {}  # by choice

    def idle(self) -> Completion:
        """A chunk without choices."""
        return self._completion([])

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
            logprobs = self._sent[choice.index].logprobs(update.prompt, update.tokens)
        rounds = rounds_report(update)
        if text or logprobs or rounds:
            yield self._completion(
                [CompletionChoice(index=choice.index, text=text, logprobs=logprobs, fusion=rounds)]
            )
        if isinstance(update, End):
            yield self._completion(
                [
                    CompletionChoice(
                        index=choice.index,
                        text="",
                        finish_reason=update.finish,
                        stop_reason=update.stop_reason,
                        fusion=self.generation.report(choice),
                    )
                ]
            )

    def closing(self, usage: Usage) -> Completion:
        """The chunk of usage, which has no choices."""
        return self._completion([], usage)

    def whole(self, choices: list[Choice], usage: Usage) -> Completion:
        """The answer in one piece."""
        texts = [
            CompletionChoice(
                index=choice.index,
                text=(self.echo[choice.index] if self.echo else "") + choice.text,
                logprobs=self._text_of(choice).logprobs(choice.prompt, choice.tokens) if self.logprobs else None,
                finish_reason=choice.end.finish if choice.end else None,
                stop_reason=choice.end.stop_reason if choice.end else None,
                fusion=self.generation.report(choice),
            )
            for choice in choices
        ]
        return self._completion(texts, usage)

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        return Completion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=choices,
            usage=usage,
            system_fingerprint=self.generation.ensemble.fingerprint,
        )

    def _text_of(self, choice: Choice) -> CompletionText:
        generation = self.generation
        view = generation.view(choice)
        if not self.echo:
            return CompletionText(view.tokenizer)
        prompt = generation.prompts[choice.index * len(generation.prompts) // len(generation.choices)]
        places = prompt.located[view.pivot] if prompt.located is not None else None
        return CompletionText(view.tokenizer, self.echo[choice.index], places)


def completions_router(service: Service) -> APIRouter:
    """The route, bound to what it serves."""
    router = APIRouter(route_class=StrictJsonRoute, tags=["completions"])
    most = service.max_prompts

    @router.post("/v1/completions", response_model=Completion)
    async def create_completion(request: Request, body: CompletionRequest) -> Response:
        """Go on from a text, or from several."""
        check_best_of(body)
        check_prompt_alone(body)
        asked = Asked.of(service, body)
        ensemble, n = asked.ensemble, asked.choices

        def written(prompt: str | list[int]) -> str:
            if isinstance(prompt, str):
                return prompt
            return ensemble.tokenizer.text_of(prompt)

        def encode(prompt: str | list[int]) -> Prompt:
            if isinstance(prompt, str):
                special = body.add_special_tokens is not False
                return ensemble.encode_text(prompt, add_special_tokens=special, locate=asked.located)
            if ensemble.chooses_pivot:
                raise InvalidRequestError(
                    f"prompt is token ids, but {ensemble.name} has no fixed pivot whose they could be; send text.",
                    param="prompt",
                )
            return ensemble.encode_ids(prompt, locate=asked.located)

        texts = prompts(body, most)
        if len(texts) * n > most:
            raise InvalidRequestError(
                f"{len(texts)} prompts with n {n} are {len(texts) * n} sequences; this server takes at most "
                f"{most} in one request.",
                param="prompt",
            )
        echo = [text for prompt in texts for text in [written(prompt)] * n] if body.echo else []
        constraint = await run_in_threadpool(lambda: constraint_of(body, ensemble))
        encoded = await run_in_threadpool(lambda: [encode(text) for text in texts])
        return await asked.answer(
            request,
            [replace(prompt, constraint=constraint) for prompt in encoded],
            lambda generation: CompletionShape(
                generation, asked.model, logprobs=body.logprobs is not None, echo=echo
            ),
            param="prompt",
        )

    return router
