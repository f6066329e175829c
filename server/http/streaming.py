"""Responses, whole or as server-sent events; they end early when the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from functools import partial
from typing import Any, Protocol

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from alignment.errors import RequestError
from fusion.core import Delta
from server.http.errors import CLIENT_CLOSED_REQUEST, as_request_error
from server.http.generation import Choice, Generation
from server.settings.server import ServerSettings

# Updates of a stream before the event loop sees to others: sending to a client that keeps up does not wait, and
# many sequences may bring updates faster than they are written.
IN_A_ROW = 8
KEEP_ALIVE = ": keep-alive\n"  # an empty line would be an event without data, which ends some clients' streams
STREAMS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
}
"""The answers of a route that can stream, as OpenAPI documents them."""


class Shape(Protocol):
    """The form of one endpoint's answers."""

    done: str
    """What ends a stream."""

    def frame(self, chunk: BaseModel) -> str:
        """A chunk as an event."""

    def failure(self, error: RequestError) -> str:
        """The events of an answer that failed on the way."""

    def idle(self) -> BaseModel | None:
        """A chunk that says nothing, for clients that wait for one; None where none may come before the others."""

    def opening(self, choices: list[Choice]) -> Iterable[BaseModel]:
        """The first chunks of a stream."""

    def chunks(self, choice: Choice, update: Delta) -> Iterable[BaseModel]:
        """The chunks for one round; `choice` already holds its tokens."""

    def closing(self) -> BaseModel | None:
        """The last chunk of a stream that was asked for usage; None where usage is sent anyway."""

    def whole(self, choices: list[Choice]) -> BaseModel:
        """The answer in one piece."""


class EventStream(StreamingResponse):
    """A stream of a generation's events, which closes the generation however it ends."""

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, events: AsyncIterator[str]) -> None:
        # nginx buffers answers unless this header is set
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self.generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send, until all is sent or the client is gone."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.generation.close()


async def respond(
    request: Request,
    generation: Generation,
    shape: Shape,
    settings: ServerSettings,
    *,
    stream: bool,
    include_usage: bool,
) -> Response:
    """The answer to a request whose sequences are running.

    The headers of a stream wait for the first update, so that a failure before it still gets its HTTP status,
    but no longer than the `keep_alive_seconds` of the settings, where these are not 0: from then on the client
    sees that the server lives.

    Raises:
        Exception: a sequence failed before anything was sent.
    """
    try:
        if stream:
            if await _while_connected(request, generation.settle(settings.keep_alive_seconds or None)):
                return EventStream(generation, _events(generation, shape, settings, include_usage))
        elif await _while_connected(request, generation.finish()):
            whole = await run_in_threadpool(lambda: _written(shape.whole(generation.choices)))
            return Response(whole, media_type="application/json")
    except BaseException:
        generation.close()
        raise
    generation.close()
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _events(
    generation: Generation, shape: Shape, settings: ServerSettings, include_usage: bool
) -> AsyncIterator[str]:
    """The stream's events. An error becomes an event too, since the status is already sent."""
    clock = asyncio.get_running_loop().time
    opened, pause = False, settings.keep_alive_seconds
    sent = clock()
    try:
        while generation.running:
            if not await generation.wait(sent + pause - clock() if pause else None):
                idle = shape.idle() if settings.keep_alive == "chunk" else None
                yield KEEP_ALIVE if idle is None else shape.frame(idle)
                sent = clock()
                continue
            for number, (choice, update) in enumerate(generation.take(), 1):
                if number % IN_A_ROW == 0:
                    await asyncio.sleep(0)
                if not opened:  # with the first token, so that a client can time it
                    opened = True
                    for chunk in shape.opening(generation.choices):
                        yield shape.frame(chunk)
                frames = partial(_frames, shape, choice, update)
                # A round is soon written, but not the log-probabilities of a whole prompt.
                for frame in await run_in_threadpool(frames) if update.prompt else frames():
                    yield frame
                    sent = clock()
        if include_usage and (closing := shape.closing()) is not None:
            yield shape.frame(closing)
    except Exception as error:
        yield shape.failure(as_request_error(error))
    if shape.done:
        yield shape.done


def _written(answer: BaseModel) -> str:
    """The JSON of an answer. Writing holds Python's lock: one choice at a time, so that others get it between."""
    choices: list[BaseModel] = getattr(answer, "choices", [])
    if len(choices) < 2:
        return answer.model_dump_json()
    around = answer.model_copy(update={"choices": []}).model_dump_json()
    before, field, after = around.partition('"choices":[')
    return before + field + ",".join([choice.model_dump_json() for choice in choices]) + after


def _frames(shape: Shape, choice: Choice, update: Delta) -> list[str]:
    return [shape.frame(chunk) for chunk in shape.chunks(choice, update)]


async def _while_connected(request: Request, work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` until it is done (True) or the client is gone (False)."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return False
        task.result()
        return True
    finally:
        for running in (task, watch):
            running.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
