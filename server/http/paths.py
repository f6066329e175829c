"""Paths of the API that are treated apart from the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.types import Scope

# Load balancers and Prometheus ask these every few seconds: without a key, also while the server drains, and
# without a record or a line in the log.
OPEN_PATHS = frozenset({"/health", "/load", "/metrics", "/ping", "/ready", "/version"})

# Those that answer with what models generate.
GENERATING_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")

# The web page and its files in `server/http/page`: without a key, which is entered on the page.
PAGE_PATHS = {
    "/": "index.html",
    "/page/style.css": "style.css",
    "/page/script.js": "script.js",
    "/page/icon.svg": "icon.svg",
}


def path_of(scope: Scope) -> str:
    """The path that was asked, below what a proxy in front has taken off (see `root_path`)."""
    path, root = str(scope["path"]), scope.get("root_path", "")
    return path.removeprefix(root) if root and path.startswith(f"{root}/") else path


def paths_of(routers: Iterable[APIRouter]) -> list[str]:
    """The paths of the routers, each once; without those that have parameters."""
    routes = (route for router in routers for route in router.routes)
    return list(dict.fromkeys(one.path for one in routes if isinstance(one, APIRoute) and "{" not in one.path))


def unknown_path(path: str, paths: Sequence[str]) -> str:
    """The sentence of a 404: the one of `paths` that was meant, or all of them."""
    parts = [part for part in path.split("/") if part]
    while parts and parts[0] == "v1":
        del parts[0]
    wanted = "/".join(parts)
    for known in paths:
        if wanted and wanted == known.removeprefix("/v1").strip("/"):
            return f"There is no such path; the right one is {known}."
    return f"There is no such path; the API has {', '.join(paths)}."
