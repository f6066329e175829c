"""`tutti run-batch`: a file of requests in OpenAI's batch format, answered into a file of the same format."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import httpx2
import openai

from alignment.errors import ConfigError
from server.http.paths import GENERATING_PATHS


@dataclass(frozen=True, slots=True)
class Line:
    """A request of the file, or what is wrong with it: then `problem` says so, and there is no `body`."""

    custom_id: str | None
    url: str = ""
    body: dict[str, Any] | None = None
    problem: str | None = None


@dataclass(slots=True)
class Count:
    """The number of requests that were answered, and of those that were not."""

    answered: int = 0
    failed: int = 0


def read(path: Path) -> list[Line]:
    """The requests of a file, in order; a line that is none does not keep the others from being answered.

    Raises:
        ConfigError: the file cannot be read, or holds nothing.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # JSON may hold other ends of lines as they are
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: give a file of JSON lines in UTF-8.") from error
    found = [_line(text, number) for number, text in enumerate(lines, 1) if text.strip()]
    if not found:
        raise ConfigError(f"{path} holds no requests.")
    repeated: set[str] = set()
    out = []
    for line in found:
        if line.custom_id is not None and line.custom_id in repeated and line.problem is None:
            line = Line(line.custom_id, problem=f"custom_id {line.custom_id!r} was there before")
        repeated.add(line.custom_id or "")
        out.append(line)
    return out


def _line(text: str, number: int) -> Line:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return Line(None, problem=f"line {number} is not valid JSON")
    if not isinstance(row, dict) or not isinstance(id := row.get("custom_id"), str):
        return Line(None, problem=f"line {number} should be an object with a custom_id")
    if row.get("method", "POST") != "POST":
        return Line(id, problem="method should be POST")
    if row.get("url") not in GENERATING_PATHS:
        return Line(id, problem=f"url should be one of {', '.join(GENERATING_PATHS)}")
    if not isinstance(body := row.get("body"), dict):
        return Line(id, problem="body should be an object")
    if body.get("stream"):
        return Line(id, problem="body.stream should be left out: a batch has no streams")
    return Line(id, row["url"], body)


async def run(client: openai.AsyncOpenAI, lines: Sequence[Line], out: TextIO, *, concurrency: int = 16) -> Count:
    """Send every request, `concurrency` at a time, and write each answer to `out` as soon as it is there."""
    free, count = asyncio.Semaphore(concurrency), Count()

    async def one(line: Line) -> None:
        async with free:
            row = await _answer(client, line)
        if row["error"] is None and row["response"]["status_code"] < 400:
            count.answered += 1
        else:
            count.failed += 1
        out.write(json.dumps(row, ensure_ascii=False) + "\n")
        out.flush()

    await asyncio.gather(*map(one, lines))
    return count


async def _answer(client: openai.AsyncOpenAI, line: Line) -> dict[str, Any]:
    """A row of the file of answers."""
    row: dict[str, Any] = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": line.custom_id}
    if line.problem is not None:
        return row | {"response": None, "error": {"code": "invalid_request", "message": f"{line.problem}."}}
    try:
        response = await client.post(line.url.removeprefix("/v1"), cast_to=httpx2.Response, body=line.body)
    except openai.APIStatusError as error:
        response = error.response
    except openai.APIError as error:
        message = f"The server cannot be reached: {error.__cause__ or error}."
        return row | {"response": None, "error": {"code": "unavailable", "message": message}}
    try:
        body = response.json()
    except ValueError:
        return row | {"response": None, "error": {"code": "no_json", "message": "The answer is not JSON."}}
    answer = {
        "status_code": response.status_code,
        "request_id": response.headers.get("x-request-id", ""),
        "body": body,
    }
    return row | {"response": answer, "error": None}
