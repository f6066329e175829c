"""Routes for load balancers, Prometheus and operators: GET /health, /ready, /metrics, /version."""

from __future__ import annotations

from collections.abc import Collection

from fastapi import APIRouter, Request, Response

from alignment.errors import UnavailableError
from fusion.loop.line import STOPPING
from server import __version__
from server.http.protocol.common import AnswerModel
from server.http.service import Service
from server.telemetry.metrics.exposition import exposition, refresh


class ServerLoad(AnswerModel):
    """Sequences of the server. `server_load`, the sum, is the field that vLLM has."""

    server_load: int
    running: int
    waiting: int


def _missed(service: Service, away: Collection[str]) -> list[str]:
    """The members that do not answer and without which some served name cannot answer.

    A member of ensembles counts as they need it, whether or not it is served under its own name too. One that does
    not answer and is not known to be down keeps sequences waiting, even where they could go on without it.
    """
    joint = [ensemble for ensemble in service.ensembles.values() if len(ensemble.models) > 1]
    shared = {name for ensemble in joint for name in ensemble.models}
    alone = [e for e in service.ensembles.values() if len(e.models) == 1 and e.pivot not in shared]
    down = service.fuser.attendance.down
    missed: set[str] = set()
    for ensemble in [*joint, *alone]:
        needed = ensemble.taking_part(ensemble.defaults)
        gone = [name for name in needed if name in away]
        spared = [name for name in gone if ensemble.engine(name) in down and ensemble.can_do_without(name)]
        missed.update(gone if len(gone) == len(needed) else set(gone).difference(spared))
    return [name for name in away if name in missed]


def _members_on(service: Service, engines: Collection[str]) -> list[str]:
    """The members that these engines run, views among them."""
    run_by = {name: each.engine(name) for each in service.ensembles.values() for name in each.models}
    return [name for name, engine in run_by.items() if engine in engines]


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
        if not service.fuser.alive():
            raise UnavailableError("The decoding loop has ended; restart the server.")
        down, stuck = service.fuser.attendance.down, service.fuser.stuck()
        if missed := _missed(service, _members_on(service, {n for n in down if down[n].retry_after is None})):
            raise UnavailableError(f"Broken for good: {', '.join(missed)}; restart the server.")
        if missed := _missed(service, _members_on(service, stuck)):
            why = "; ".join(f"{name}: {reason}" for name, reason in stuck.items())
            raise UnavailableError(f"Not answering: {', '.join(missed)} ({why}); restart the server.")
        return {"status": "ok"}

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready")
    async def ready() -> dict[str, str | list[str]]:
        """Readiness for requests: 200, or 503 at shutdown and while an ensemble lacks a member.

        An ensemble that can decode without that member keeps the server ready.
        """
        if service.lifecycle.draining:
            raise UnavailableError(STOPPING)
        away = [name for name, member in service.fuser.load().members.items() if not member.up]
        if missed := _missed(service, away):
            raise UnavailableError(f"Not answering: {', '.join(missed)}.")
        return {"status": "degraded", "down": away} if away else {"status": "ready"}

    @router.get("/metrics", include_in_schema=False)
    def metrics(request: Request) -> Response:
        """All metrics for Prometheus, from this process alone: they come whether members are up or down."""
        refresh(service.catalogue, service.ensembles, service.fuser.load())
        content, content_type = exposition(service.catalogue, request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": content_type})

    @router.get("/load")
    def load() -> ServerLoad:
        """The sequences that are being answered and those that wait, for load balancers."""
        found = service.fuser.load()
        running, waiting = sum(found.running.values()), sum(found.waiting.values())
        return ServerLoad(server_load=running + waiting, running=running, waiting=waiting)

    @router.get("/version")
    async def version() -> dict[str, str]:
        """The server's version."""
        return {"version": __version__}

    return router
