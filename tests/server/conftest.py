from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from fusion.ensemble import Ensemble
from server.http.app import create_app
from server.http.connection import Connection
from server.settings import ServerSettings
from tests.support.model_folders import save_site
from tests.support.scripted_fuser import ScriptedFuser, ensemble
from tests.support.served import Served


@pytest.fixture
def fuser() -> ScriptedFuser:
    return ScriptedFuser()


@pytest.fixture
def client(fuser: ScriptedFuser) -> Iterator[TestClient]:
    """In-process; an exception that escapes the application fails the test."""
    app = create_app({"pair": ensemble(), "other/one": ensemble("other/one")}, fuser, ServerSettings())
    with TestClient(app) as client:
        yield client


@pytest.fixture
def serve(fuser: ScriptedFuser) -> Iterator[Callable[..., Served]]:
    """Start servers on free ports."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []
    clients = ExitStack()

    def start(ensembles: dict[str, Ensemble] | None = None, **options: Any) -> Served:
        app = create_app(ensembles or {"pair": ensemble()}, fuser, ServerSettings(**options))
        config = uvicorn.Config(
            app, http=Connection, ws="none", log_config=None, log_level="warning", timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(config)
        listener = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        running.append((server, thread))
        port = listener.getsockname()[1]
        served = Served(f"http://127.0.0.1:{port}", fuser, clients)
        with served.http() as http:
            assert http.get("/health").status_code == 200
        return served

    with clients:
        yield start
    for server, _ in running:
        server.should_exit = True
    for _, thread in running:
        thread.join(timeout=10)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tiny models of different families and vocabularies, and a configuration."""
    folder = tmp_path_factory.mktemp("site")
    save_site(folder)
    return folder


@pytest.fixture
def broken(site: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be damaged."""
    return shutil.copytree(site, tmp_path / "site")
