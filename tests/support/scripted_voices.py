"""Voices whose words follow from seeds alone, to test what is made of them without models that know anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fusion.distill.bohdi.settings import TARGET
from fusion.distill.bohdi.voices import Reply, Request

DOMAINS = ("cats", "houses", "colours")


@dataclass
class ScriptedVoices:
    """Leaders name one of `DOMAINS` and ask numbered questions; sources answer well, the target badly.

    Attributes:
        reply: what takes the place of a request's usual reply, None for the usual one.
        score: the log-probability of an answer.
        asked: all requests so far.
    """

    reply: Callable[[Request], Reply | None] = lambda request: None
    score: Callable[[str], float | None] = lambda answer: -1.0 if "well" in answer else -2.0
    asked: list[Request] = field(default_factory=list)
    tokens: int = 0

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request."""
        self.asked += requests
        self.tokens += len(requests)
        return [self.reply(request) or self._usual(request) for request in requests]

    def log_probabilities(self, exchanges: Sequence[tuple[str, str]]) -> list[float | None]:
        """The score of every answer."""
        return [self.score(answer) for _, answer in exchanges]

    def _usual(self, request: Request) -> Reply:
        seed = request.sampling.seed or 0
        properties: Mapping[str, Any] = (request.schema or {}).get("properties", {})
        if "name" in properties:
            return said(json.dumps({"name": DOMAINS[seed % len(DOMAINS)]}))
        if "question" in properties:
            return said(json.dumps({"question": f"the cat {seed % 10_000} sees"}))
        if "best" in properties:
            return said(json.dumps({"best": 1}))
        return said(f"{request.prompt} badly" if request.model == TARGET else f"{request.prompt} well")


def said(text: str) -> Reply:
    """A whole reply."""
    return Reply(text, finished=True)


def opening(voices: ScriptedVoices) -> Callable[..., Any]:
    """What takes the place of `open_voices`."""

    @contextmanager
    def opened(sources: object, panel: object) -> Iterator[ScriptedVoices]:
        yield voices

    return opened
