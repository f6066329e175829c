"""Generation: the sequences of one request, passed from the fuser's thread to the event loop as they grow."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from alignment.errors import UnavailableError
from fusion.core import Delta, End, Prompt, Token
from fusion.options import FusionParams, SamplingParams
from server.http.protocol.common import CompletionTokensDetails, PromptTokensDetails, Usage
from server.http.protocol.fusion import FusionReport, fusion_report
from server.telemetry.record import Record

if TYPE_CHECKING:
    from fusion.ensemble import Ensemble, View
    from fusion.loop.fuser import Fuser


@dataclass
class Choice:
    """One sequence of a request: what it has produced so far.

    `thoughts` is how many of the tokens are known to be thoughts, as far as the answer was read.
    """

    index: int
    texts: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)  # of tokens, with each of the texts
    tokens: list[Token] = field(default_factory=list)
    prompt: tuple[Token, ...] = ()
    pivot: str | None = None
    thoughts: int = 0
    end: End | None = None

    @property
    def text(self) -> str:
        """All settled text."""
        return "".join(self.texts)

    def add(self, update: Delta) -> None:
        """Add the update of a round."""
        self.texts.append(update.text)
        self.counts.append(len(update.tokens))
        self.tokens.extend(update.tokens)
        self.prompt += update.prompt
        self.pivot = update.pivot
        if isinstance(update, End):
            self.end = update


class Generation:
    """The sequences of one request.

    Lives on the event loop that made it; only `_arrive` is called from the fuser's thread. The code that
    creates one must always call `close`, which frees the caches when a client goes away.

    Args:
        fuser: where the sequences run.
        ensemble: the ensemble that decodes them.
        fusion: the options of fusion.
        prompts: each once, whatever the number of choices for it.
        record: the record of the request, updated with everything that arrives.
        timeout: seconds until it fails; None for never.
        prompt_only: answer with the prompt alone: what is generated after it is left out.
    """

    def __init__(
        self,
        fuser: Fuser,
        ensemble: Ensemble,
        fusion: FusionParams,
        *,
        prompts: Sequence[Prompt],
        record: Record,
        timeout: float | None,
        prompt_only: bool,
    ) -> None:
        self.fuser = fuser
        self.ensemble = ensemble
        self.fusion = fusion
        self.prompts = prompts
        self.record = record
        self.timeout = timeout
        self.prompt_only = prompt_only
        self.choices: list[Choice] = []
        self._loop = asyncio.get_running_loop()
        self._expired = False
        self._timer = None if timeout is None else self._loop.call_later(timeout, self._expire)
        self._sequences: dict[int, int] = {}  # by index of the choice; unfinished ones
        self._arrived: deque[tuple[int, Delta]] = deque()
        self._signal = asyncio.Event()

    def submit(self, choices: Sequence[tuple[Prompt, SamplingParams]], *, flow: str) -> None:
        """Start one sequence for each pair of parameters and prompt, equally many for each prompt.

        Raises:
            OverloadedError: there is no room for all of them; none is left running.
        """
        self.choices = [Choice(index) for index in range(len(choices))]
        self.record.begin(self.ensemble.name, self.prompt_tokens, len(choices))
        try:
            for index, (prompt, sampling) in enumerate(choices):
                number = self.fuser.submit(
                    self.ensemble,
                    prompt,
                    sampling,
                    self.fusion,
                    flow=flow,
                    on_update=partial(self._arrive, index),
                )
                self._sequences[index] = self.record.sequences[index].number = number
        except BaseException:
            self.close()
            self.record.refused()
            raise

    def view(self, choice: Choice) -> View:
        """The ensemble around the pivot whose tokens the choice is in."""
        return self.ensemble.view(choice.pivot)

    @property
    def prompt_tokens(self) -> int:
        """The length of all prompts together, counted once each, in the pivot's tokens."""
        pivots = [self.view(choice).pivot for choice in self._firsts]
        pivots = pivots or [self.ensemble.pivot] * len(self.prompts)
        return sum(len(prompt.ids[pivot]) for prompt, pivot in zip(self.prompts, pivots, strict=True))

    @property
    def _firsts(self) -> list[Choice]:
        """The first choice of each prompt."""
        return self.choices[:: max(len(self.choices) // max(len(self.prompts), 1), 1)]

    @property
    def running(self) -> bool:
        """Return whether any sequence is unfinished."""
        return bool(self._sequences)

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        prompt, completion = self.prompt_tokens, sum(len(choice.tokens) for choice in self.choices)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self._reused),
            completion_tokens_details=CompletionTokensDetails(
                reasoning_tokens=sum(choice.thoughts for choice in self.choices)
            ),
        )

    @property
    def _reused(self) -> int:
        """The tokens of the prompts, once each, that the pivot had not to compute, as far as that is known yet."""
        return sum(
            choice.end.account.reused.get(self.view(choice).pivot, 0)
            for choice in self._firsts
            if choice.end is not None and choice.end.account is not None
        )

    def prompt_of(self, choice: Choice) -> Prompt:
        """The prompt that a choice answers."""
        return self.prompts[choice.index * len(self.prompts) // len(self.choices)]

    def report(self, choice: Choice) -> FusionReport | None:
        """The report of every member in every round, where the request asked for it."""
        if not self.fusion.report or choice.end is None:
            return None
        return fusion_report(self.ensemble, self.fusion, self.view(choice).pivot, choice.end)

    async def wait(self, seconds: float | None = None) -> bool:
        """Return whether something arrived, after waiting at most `seconds` (None: up to the request's limit).

        Raises:
            UnavailableError: the request took longer than it may.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._signal.wait()
        except TimeoutError:
            return False
        if self._expired:
            self.record.error = UnavailableError(
                f"The answer took longer than the {self.timeout:g} seconds this server allows; "
                "lower max_tokens or try again.",
                may_repeat=False,
            )
            raise self.record.error
        return True

    def take(self) -> Iterator[tuple[Choice, Delta]]:
        """Yield the updates since the last call, in order, each already added to its choice.

        Raises:
            Exception: the one that a sequence failed with.
        """
        self._signal.clear()
        while self._arrived:
            index, update = self._arrived.popleft()
            if isinstance(update, End):
                del self._sequences[index]
                if update.error is not None:
                    raise update.error
            if self.prompt_only:
                update = replace(update, text="", tokens=(), round=None)
                if isinstance(update, End):
                    update = replace(update, finish="length", stop_reason=None, rounds=())
            choice = self.choices[index]
            turned = update.pivot != choice.pivot
            choice.add(update)
            if turned:  # the prompt has decided whose tokens are counted
                self.record.prompt_tokens = self.prompt_tokens
            yield choice, update

    async def settle(self, seconds: float | None) -> None:
        """Wait for the first sign of life, at most so long (None: without end): an error can still have a status.

        Raises:
            Exception: the one that the first sequence failed with.
        """
        if await self.wait(seconds):
            _, first = self._arrived[0]
            if isinstance(first, End) and first.error is not None:
                raise first.error

    async def finish(self) -> None:
        """Run to the end.

        Raises:
            Exception: the one a sequence failed with.
        """
        while self.running:
            await self.wait()
            for _ in self.take():
                pass

    def close(self) -> None:
        """Stop what is still running."""
        if self._timer is not None:
            self._timer.cancel()
        if self._sequences:
            self.record.cancelled = True
        self._cancel()
        self._sequences.clear()

    def _expire(self) -> None:
        """The time is over: free the caches, also of an answer that its client is slow to read."""
        self._expired = bool(self._sequences)
        self._cancel()
        self._signal.set()

    def _cancel(self) -> None:
        for sequence in self._sequences.values():
            self.fuser.cancel(sequence)

    def _arrive(self, index: int, update: Delta) -> None:
        self.record.update(index, update)
        self._arrived.append((index, update))
        with contextlib.suppress(RuntimeError):  # the loop closes when the server stops while a sequence runs
            self._loop.call_soon_threadsafe(self._signal.set)
