"""Outbox: what callers and the observer are still to be given, once the members are at work."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from fusion.loop.observer import Observer

log = logging.getLogger(__name__)


class Outbox:
    """Calls that wait until members have their next work. Used by the fuser's thread only."""

    def __init__(self) -> None:
        self.observer = Observer()
        self._updates: list[Callable[[], None]] = []
        self._news: list[Callable[[], None]] = []

    def update(self, call: Callable[..., None], *args: Any, **options: Any) -> None:
        """Have something for a caller."""
        self._updates.append(partial(call, *args, **options))

    def news(self, call: Callable[..., None], *args: Any) -> None:
        """Have something for the observer."""
        self._news.append(partial(call, *args))

    def flush(self) -> None:
        """Hand everything over: callers first."""
        for update in self._updates:
            update()
        self._updates.clear()
        for news in self._news:
            try:
                news()
            except Exception:  # a defect in measuring must not end the decoding
                log.exception("the observer failed")
        self._news.clear()
