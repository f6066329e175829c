"""Listener: an answer as its updates come in, for callers in this process that wait for all of it."""

from __future__ import annotations

from collections.abc import Callable

from alignment.errors import TuttiError
from fusion.core import Delta, End, Token


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
