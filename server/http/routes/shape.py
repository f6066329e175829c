"""OpenAIShape: what answers to chats and to texts have in common."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel

from alignment.errors import RequestError
from fusion.core import Token
from server.http.errors import error_body
from server.http.generation import Choice, Generation
from server.http.middleware.request_id import sane_id
from server.http.protocol.common import Envelope, PromptLogprobs, Usage
from server.http.protocol.logprobs import prompt_logprobs
from server.http.protocol.sampling import SamplingFields

Body = TypeVar("Body", bound=SamplingFields)
Chunk = TypeVar("Chunk", bound=Envelope)


class OpenAIShape(Generic[Body, Chunk]):
    """The events and the envelope of every answer, the tokens that were asked for, and how choices end.

    Attributes:
        prefix: what ids of answers begin with.
        of_chunks: the class of the chunks of a stream.
        model: the name that the request asked for.
    """

    done = "data: [DONE]\n\n"
    prefix: ClassVar[str]
    of_chunks: type[Chunk]

    def __init__(self, generation: Generation, model: str, body: Body) -> None:
        self.generation = generation
        self.model = model
        self.body = body
        self.id = f"{self.prefix}-{sane_id(body.request_id)}"
        self.created = int(time.time())

    def frame(self, chunk: BaseModel) -> str:
        """A chunk as an event."""
        return f"data: {chunk.model_dump_json()}\n\n"

    def failure(self, error: RequestError) -> str:
        """The event of an answer that failed on the way."""
        return f"data: {json.dumps(error_body(error))}\n\n"

    def idle(self) -> Chunk:
        """A chunk without choices."""
        return self.chunk()

    def closing(self) -> Chunk:
        """The chunk of usage, which has no choices."""
        return self.chunk(usage=self.generation.usage)

    def chunk(self, *choices: BaseModel, usage: Usage | None = None) -> Chunk:
        """A chunk with these choices."""
        return self.of_chunks(choices=list(choices), **self.envelope(usage))

    def envelope(self, usage: Usage | None) -> dict[str, Any]:
        """The fields around the choices."""
        return {
            "id": self.id,
            "created": self.created,
            "model": self.model,
            "usage": self.generation.usage if self.body.continuous_usage else usage,
            "system_fingerprint": self.generation.ensemble.fingerprint,
        }

    def ending(self, choice: Choice) -> dict[str, Any]:
        """How a choice ended, and the report on it."""
        return {
            "finish_reason": choice.end.finish if choice.end else None,
            "stop_reason": choice.end.stop_reason if choice.end else None,
            "fusion": self.generation.report(choice),
        }

    def ids(self, tokens: Sequence[Token]) -> list[int] | None:
        """The ids of tokens, where they are asked for."""
        return [token.chosen.id for token in tokens] if self.body.return_token_ids else None

    def prompt_ids(self, choice: Choice) -> list[int] | None:
        """The ids of the prompt, where they are asked for."""
        if not self.body.return_token_ids:
            return None
        return self.generation.prompt_of(choice).ids[self.generation.view(choice).pivot]

    def prompt_logprobs(self, choice: Choice) -> PromptLogprobs | None:
        """Those of the prompt's tokens, where they are asked for."""
        if (wanted := self.body.prompt_logprobs) is None:
            return None
        return prompt_logprobs(choice.prompt, wanted, self.generation.view(choice).tokenizer)
