"""Service: the ensembles by name, the fuser that decodes them, and the limits, for all routes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from anyio import CapacityLimiter, to_thread

from alignment.errors import NotFoundError, field_error
from alignment.text.tokenizer import Tokenizer
from fusion.loop.line import most_of_one_flow
from server.http.errors import shorten
from server.http.middleware.drain import Lifecycle
from server.http.reasoning import ReasoningTags
from server.http.tools.offer import support_of
from server.http.tools.template import ToolSupport
from server.settings import ServerSettings
from server.telemetry.metrics.catalogue import Catalogue

if TYPE_CHECKING:
    from fusion.ensemble import Ensemble
    from fusion.loop.fuser import Fuser

Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class Service:
    """Everything a route needs. `ensembles` is not empty; the first one is the default."""

    ensembles: dict[str, Ensemble]
    fuser: Fuser
    settings: ServerSettings
    catalogue: Catalogue = field(default_factory=Catalogue)
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    _supports: dict[str, ToolSupport] = field(default_factory=dict, repr=False)
    started: int = field(default_factory=lambda: int(time.time()))
    # Long prompts and grammars take seconds of a core: what has come after them, and scrapes, have other threads.
    _preparing: CapacityLimiter = field(
        default_factory=lambda: CapacityLimiter((os.cpu_count() or 1) + 2), repr=False
    )

    async def prepare(self, work: Callable[[], Prepared]) -> Prepared:
        """Read what a request sent on a thread, as soon as one of the few for that is free."""
        return await to_thread.run_sync(work, limiter=self._preparing)

    def tool_support(self, tokenizer: Tokenizer) -> ToolSupport:
        """What a member's chat template shows of tools, found once."""
        key = f"{tokenizer.fingerprint} {hash(str(tokenizer.hf.chat_template))}"
        if key not in self._supports:
            self._supports[key] = support_of(tokenizer)
        return self._supports[key]

    @property
    def reasoning_tags(self) -> ReasoningTags | None:
        """What thoughts stand between; None leaves them in the text."""
        return ReasoningTags(*self.settings.reasoning_tags) if self.settings.reasoning_tags else None

    @property
    def max_prompts(self) -> int:
        """The most prompts, and the most sequences, of one completion request: what one key may have waiting."""
        return max(1, most_of_one_flow(self.settings.max_waiting))

    @property
    def default_model(self) -> str:
        """The ensemble that answers where naming one is optional."""
        return next(iter(self.ensembles))

    @property
    def names(self) -> tuple[str, ...]:
        """All names that clients may ask for, aliases last."""
        return (*self.ensembles, *self.settings.aliases)

    def ensemble(self, name: str | None) -> Ensemble:
        """The ensemble served under this name or alias; None for the only one there is.

        Raises:
            InvalidRequestError: no name, but several are served.
            NotFoundError: there is none; the message lists what is served.
        """
        if name is None:
            if len(self.ensembles) > 1:
                raise field_error("model", f"is missing; choose one of {', '.join(self.ensembles)}.")
            return self.ensembles[self.default_model]
        name = self.settings.aliases.get(name, name)
        if name not in self.ensembles:
            served = ", ".join(self.ensembles)
            raise NotFoundError(
                f"The model {shorten(name)} is not served here; choose one of {served}.",
                param="model",
                code="model_not_found",
            )
        return self.ensembles[name]
