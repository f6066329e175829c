"""What load balancers, Prometheus and operators ask, without a key: GET /health, /ready, /metrics, /version."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from alignment.errors import Unavailable
from fusion.admission import STOPPING
from server.metrics.exposition import exposition, refresh
from server.service import Service


def operations_router(service: Service) -> APIRouter:
    """The routes, bound to what they are asked about."""
    router = APIRouter(tags=["operations"])

    @router.head("/health", include_in_schema=False)
    @router.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process is alive: 200, or 503 once the decoding loop has ended and only a restart helps."""
        if not service.fuser.alive():
            raise Unavailable("The decoding loop has ended; restart the server.")
        return {"status": "ok"}

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready")
    async def ready() -> dict[str, str]:
        """Whether requests should be sent here: 200 while every member answers, 503 otherwise and at shutdown."""
        if service.lifecycle.draining:
            raise Unavailable(STOPPING)
        down = [name for name, member in service.fuser.load().members.items() if not member.up]
        if down:
            raise Unavailable(f"Not answering: {', '.join(down)}.")
        return {"status": "ready"}

    @router.get("/metrics", include_in_schema=False)
    def metrics(request: Request) -> Response:
        """All metrics for Prometheus, whether members are up or down: nobody but this process is asked."""
        refresh(service.catalogue, service.ensembles, service.fuser.load())
        content, content_type = exposition(service.catalogue, request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": content_type})

    @router.get("/version")
    async def version() -> dict[str, str]:
        """The server's version."""
        return {"version": service.options.version}

    return router
