from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.support.demo import CONFIG, ENSEMBLE
from tests.support.serving import MEMORY, Server, serving


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One process for all tests."""
    with serving(CONFIG, tmp_path_factory.mktemp("server") / "stderr.log", **MEMORY) as server:
        yield server


@pytest.fixture(scope="package")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="package")
def http(server: Server) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


@pytest.fixture(scope="package")
def members(http: httpx.Client) -> list[str]:
    """The members of the demo ensemble, the pivot first."""
    fusion = http.get(f"/v1/models/{ENSEMBLE}").json()["fusion"]
    return sorted(fusion["members"], key=lambda name: name != fusion["pivot"])


@pytest.fixture(scope="package")
def pivot(members: list[str]) -> str:
    return members[0]
