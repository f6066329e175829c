"""OpenAI clients of Tutti's own commands: one base URL, never a key that is meant for another server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx2
import openai

from alignment.errors import ConfigError

if TYPE_CHECKING:
    from server.settings import Settings

NO_KEY = "none"  # sent where none is given, so that the SDK does not take OPENAI_API_KEY from the environment
_RETRIES = 5  # of a request that an overloaded server refuses, after the time that it names
_TIMEOUT = openai.Timeout(10, read=None, pool=None)  # how long an answer may take is the server's to decide


def api_url(url: str) -> str:
    """The base URL of the API for a server's URL, which may end in /v1 already."""
    return f"{url.rstrip('/').removesuffix('/v1')}/v1"


def client_of(url: str, api_key: str | None = None, http: httpx2.AsyncClient | None = None) -> openai.AsyncOpenAI:
    """An OpenAI client that waits as long as an answer takes, and asks an overloaded server again."""
    return openai.AsyncOpenAI(
        base_url=api_url(url),
        api_key=api_key or NO_KEY,
        timeout=_TIMEOUT,
        max_retries=_RETRIES,
        http_client=http,
    )


@asynccontextmanager
async def remote(url: str, api_key: str | None) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of a running server, whose URL may end in /v1 or not.

    Raises:
        ConfigError: it is no URL.
    """
    try:
        client = client_of(url, api_key)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"{url} is no URL: {error}.") from None
    async with client:
        yield client


@asynccontextmanager
async def local(settings: Settings) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of the configured server, which is loaded into this process and takes no port."""
    from server.http.app import create_app
    from server.loading import build

    runtime = build(settings)
    open_to_all = settings.server.model_copy(update={"api_keys": (), "api_keys_file": None})
    app = create_app(runtime.ensembles, runtime.fuser, open_to_all)
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app))
    async with app.router.lifespan_context(app), client_of("http://tutti", http=http) as client:
        yield client
