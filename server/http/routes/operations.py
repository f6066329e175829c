"""Routes for load balancers, Prometheus and operators: GET /health, /ready, /metrics, /version."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from alignment.errors import UnavailableError
from fusion.loop.line import stopping
from server import __version__
from server.http.health import missed_by, unwell
from server.http.protocol.common import AnswerModel
from server.http.service import Service
from server.telemetry.metrics.exposition import exposition, refresh


class ServerLoad(AnswerModel):
    """Sequences of the server. `server_load`, the sum, is the field that vLLM has."""

    server_load: int
    running: int
    waiting: int


def operations_router(service: Service) -> APIRouter:
    """The routes, bound to what they are asked about."""
    router = APIRouter(tags=["operations"])

    @router.head("/ping", include_in_schema=False)  # the name that SageMaker asks for
    @router.post("/ping", include_in_schema=False)
    @router.get("/ping")
    @router.head("/health", include_in_schema=False)
    @router.get("/health")
    async def health() -> dict[str, str]:
        """Liveness of the process: 200, or 503 once only a restart helps.

        That is when the decoding loop has ended, or an engine inside this process is broken, hangs or fails at
        every step, and a served name cannot do without it.
        """
        if (found := unwell(service)) is not None:
            raise UnavailableError(f"{found.reason}; restart the server.")
        return {"status": "ok"}

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready")
    async def ready() -> dict[str, str | list[str]]:
        """Readiness for requests: 200, or 503 at shutdown and while an ensemble lacks a member.

        An ensemble that can decode without that member keeps the server ready.
        """
        if service.lifecycle.draining:
            raise stopping()
        away = [name for name, member in service.fuser.load().members.items() if not member.up]
        if missed := missed_by(service, away):
            raise UnavailableError(f"Not answering: {', '.join(missed)}.")
        return {"status": "degraded", "down": away} if away else {"status": "ready"}

    @router.get("/metrics", include_in_schema=False)
    def metrics(request: Request) -> Response:
        """All metrics for Prometheus, from this process alone: they come whether members are up or down."""
        refresh(service.catalogue, service.ensembles, service.fuser.load())
        content, content_type = exposition(service.catalogue, request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": content_type})

    @router.get("/load")
    async def load() -> ServerLoad:
        """The sequences that are being answered and those that wait, for load balancers."""
        found = service.fuser.load()
        running, waiting = sum(found.running.values()), sum(found.waiting.values())
        return ServerLoad(server_load=running + waiting, running=running, waiting=waiting)

    @router.get("/version")
    async def version() -> dict[str, str]:
        """The server's version."""
        return {"version": __version__}

    return router
