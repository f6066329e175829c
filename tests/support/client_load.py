"""Traffic as clients make it, through the openai SDK, with what they measured."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import openai

from tests.support.demo import questions, user

# Answers of two kinds of length, so that latencies are not all the same.
LENGTHS = (8, 24, 48)


@dataclass
class Measured:
    """Seconds, as clients saw them; lists grow from several threads."""

    first_token: list[float] = field(default_factory=list)
    per_token: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)


def streams(client: openai.OpenAI, model: str, seconds: float, clients: int) -> Measured:
    """Read streamed answers of one model, so many at a time, and measure each."""
    measured = Measured()
    _repeat(lambda text, length: _stream(client, model, text, length, measured), seconds, clients)
    return measured


def mixed(client: openai.OpenAI, models: list[str], seconds: float) -> None:
    """What else happens: whole answers, several choices, clients that go away, requests that are refused."""
    turn = itertools.cycle(models)

    def ask(text: str, length: int) -> None:
        model = next(turn)
        create = client.chat.completions.create
        create(model=model, messages=user(text), max_tokens=length, temperature=0)
        create(model=model, messages=user(text), max_tokens=8, temperature=1, n=3, seed=length)
        with create(model=model, messages=user(text), max_tokens=200, stream=True, seed=1) as left:
            next(iter(left))
        for refused in ({"model": "nobody"}, {"model": model, "temperature": -1}):
            with suppress(openai.APIStatusError):
                client.chat.completions.create(messages=user(text), **refused)  # type: ignore[call-overload]

    _repeat(ask, seconds, 1)


def _stream(client: openai.OpenAI, model: str, text: str, length: int, measured: Measured) -> None:
    began = time.perf_counter()
    arrivals: list[float] = []
    with client.chat.completions.create(
        model=model,
        messages=user(text),
        max_tokens=length,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    ) as chunks:
        told = (chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content)
        arrivals.extend(time.perf_counter() for _ in told)
    measured.first_token.append(arrivals[0] - began)
    measured.per_token.append((arrivals[-1] - arrivals[0]) / (length - 1))
    measured.whole.append(time.perf_counter() - began)


def _repeat(ask: Callable[[str, int], None], seconds: float, clients: int) -> None:
    """Ask in turn, from so many threads, until time is up; what goes wrong comes out."""
    asked = itertools.cycle(zip(questions(40), itertools.cycle(LENGTHS)))
    deadline = time.monotonic() + seconds

    def work() -> None:
        while time.monotonic() < deadline:
            ask(*next(asked))

    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(work) for _ in range(clients)]:
            done.result()
