"""The HTTP application: routes, middleware, and the fuser's lifetime."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from server import __version__
from server.http.errors import ErrorResponse
from server.http.health import unwell
from server.http.middleware.auth import BearerAuth
from server.http.middleware.body_limit import BodyLimit
from server.http.middleware.drain import Drain
from server.http.middleware.request_id import ID_HEADERS, RequestId
from server.http.paths import paths_of
from server.http.refusals import install_handlers
from server.http.routes.chat import chat_router
from server.http.routes.completions import completions_router
from server.http.routes.messages import messages_router
from server.http.routes.models import models_router
from server.http.routes.operations import operations_router
from server.http.routes.page import page_router
from server.http.routes.responses import responses_router
from server.http.routes.tokens import tokens_router
from server.http.service import Service
from server.settings import ServerSettings, accepted_keys
from server.telemetry.logs import log_request
from server.telemetry.metrics.decoding import DecodingMetrics
from server.telemetry.metrics.exposition import describe
from server.telemetry.metrics.requests import RequestMetrics
from server.telemetry.record import Record

if TYPE_CHECKING:
    from fusion.ensemble import Ensemble
    from fusion.loop.fuser import Fuser
    from server.telemetry.traces import Tracing

# Every error has the same shape, and a request that fails validation is answered with 400, never 422.
RESPONSES: dict[int | str, dict[str, Any]] = {"default": {"model": ErrorResponse, "description": "Error"}}


def create_app(ensembles: dict[str, Ensemble], fuser: Fuser, settings: ServerSettings) -> FastAPI:
    """The OpenAI-compatible API over running members.

    Args:
        ensembles: what is served, by name; not empty. The first one is the default where a name is optional.
        fuser: decodes them; started and stopped with the application.
        settings: limits and keys.

    Raises:
        ConfigError: the file of keys cannot be read.
    """
    service = Service(ensembles, fuser, settings)
    describe(service.catalogue, ensembles, __version__)
    fuser.observer = DecodingMetrics(service.catalogue, ensembles)
    metrics = RequestMetrics(service.catalogue, ensembles)

    tracing = _tracing(settings.otlp_endpoint)

    def on_end(record: Record) -> None:
        metrics.ended(record)
        log_request(record)
        if tracing is not None:
            tracing.ended(record)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(fuser.start)
        try:
            yield
        finally:
            await run_in_threadpool(fuser.stop)
            if tracing is not None:
                await run_in_threadpool(tracing.stop)

    middleware = []
    if settings.cors_origins:  # outermost, so that errors carry its headers and a preflight needs no key
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=[*ID_HEADERS, "retry-after"],
            )
        )
    middleware += [
        Middleware(RequestId, on_tokens=metrics.on_tokens, on_end=on_end),
        Middleware(Drain, lifecycle=service.lifecycle),
    ]
    if keys := accepted_keys(settings):
        middleware.append(Middleware(BearerAuth, api_keys=keys))
    middleware.append(Middleware(BodyLimit, limit=settings.max_body_bytes))
    app = FastAPI(
        title="Tutti",
        version=__version__,
        lifespan=lifespan,
        middleware=middleware,
        redirect_slashes=False,
        strict_content_type=False,
        responses=RESPONSES,
    )
    app.state.lifecycle = service.lifecycle
    app.state.unwell = partial(unwell, service)
    builders = (
        chat_router,
        completions_router,
        responses_router,
        messages_router,
        models_router,
        tokens_router,
        operations_router,
    )
    routers = [build(service) for build in builders]
    for router in routers:
        app.include_router(router)
    install_handlers(app, paths_of(routers))
    if settings.page:
        app.include_router(page_router())
    return app


def _tracing(endpoint: str | None) -> Tracing | None:
    """Tracing, where the configuration or OpenTelemetry's environment names an endpoint."""
    variables = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if endpoint is None and not any(os.environ.get(name) for name in variables):
        return None
    from server.telemetry.traces import Tracing

    return Tracing(endpoint)
