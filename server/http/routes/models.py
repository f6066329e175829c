"""GET /v1/models, GET /v1/models/{id}."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter

from server.http.protocol.models import ModelCard, ModelFusion, ModelList
from server.http.service import Service


def models_router(service: Service) -> APIRouter:
    """The routes, bound to what they serve."""
    router = APIRouter(tags=["models"])

    def card(name: str) -> ModelCard:
        ensemble = service.ensemble(name)
        return ModelCard(
            id=name,
            display_name=name,
            created=service.started,
            created_at=datetime.fromtimestamp(service.started, UTC),
            root=service.settings.aliases.get(name, name),
            max_model_len=ensemble.context,
            parents=list(ensemble.models[name].parents) or None if name in ensemble.models else None,
            fusion=ModelFusion(pivot=ensemble.pivot_name, members=list(ensemble.models)),
        )

    @router.get("/v1/models")
    async def list_models() -> ModelList:
        """All served names."""
        names = service.names
        return ModelList(data=[card(name) for name in names], first_id=names[0], last_id=names[-1])

    @router.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> ModelCard:
        """One of them; names may contain slashes."""
        return card(name)

    return router
