"""Listener: an answer as its updates come in, for callers in this process that wait for all of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from alignment.errors import TuttiError
from fusion.core import Delta, End, Prompt, Token
from fusion.ensemble import Ensemble
from fusion.loop.fuser import Fuser
from fusion.options import FusionParams, SamplingParams

Submission = tuple[Ensemble, Prompt, SamplingParams, FusionParams]
"""What `Fuser.submit` takes."""
Question = TypeVar("Question")


class Listener:
    """Collects one answer, on the fuser's thread; `done` is called when it is over.

    Attributes:
        text: so far.
        tokens: how many.
        prompt: the tokens of the prompt, where they were asked for.
        pivot: the member whose tokens they are.
        end: its last update; None before it, and where the request was not taken.
        error: why there is no answer; None where there is one.
    """

    def __init__(self, done: Callable[[], None]) -> None:
        self._done = done
        self.text = ""
        self.tokens = 0
        self.prompt: tuple[Token, ...] = ()
        self.pivot = ""
        self.end: End | None = None
        self.error: str | None = None

    def __call__(self, update: Delta) -> None:
        """Take a part of the answer."""
        self.text += update.text
        self.tokens += len(update.tokens)
        self.prompt = self.prompt or update.prompt
        self.pivot = update.pivot or self.pivot
        if isinstance(update, End):
            self.end = update
            self.error = None if update.error is None else str(update.error)
            self._done()

    def refuse(self, error: TuttiError) -> None:
        """Note why the request was not taken."""
        self.error = str(error)
        self._done()


def ask_all(
    fuser: Fuser,
    request: Callable[[Question], Submission],
    questions: Sequence[Question],
    at_a_time: int | None = None,
) -> list[Listener]:
    """Ask a running fuser all questions and wait for the answers, which are in their order.

    One that makes no request, or whose request is not taken, has an answer with the error; the others go on.

    Args:
        request: makes the request of a question when its turn comes, or raises TuttiError.
        at_a_time: how many may be open at most; None for all.
    """
    most = len(questions) if at_a_time is None else at_a_time
    places = threading.Semaphore(most)
    listeners = []
    for question in questions:
        places.acquire()
        listener = Listener(places.release)
        listeners.append(listener)
        try:
            fuser.submit(*request(question), on_update=listener)
        except TuttiError as error:
            listener.refuse(error)
    for _ in range(most):
        places.acquire()
    return listeners
