"""Health, readiness and version: what load balancers and operators ask."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from fusion.assembly.ensembles import build_ensemble
from fusion.core import Down, Trouble
from fusion.ensemble import View
from fusion.views import ModelView
from server import __version__
from server.http.app import create_app
from server.http.routes import chat
from server.settings import ServerSettings
from tests.support.scraped_server import Scrape
from tests.support.scripted_fuser import ScriptedFuser, ensemble
from tests.support.small_requests import CHAT, CHAT_PATH

GONE = Down("its engine is gone", 2.0)


@pytest.mark.parametrize("silent", [False, True])
def test_a_member_that_is_away_fails_readiness_but_no_scrape(
    client: TestClient, fuser: ScriptedFuser, silent: bool
) -> None:
    assert client.get("/ready").json() == {"status": "ready"}
    if silent:
        fuser.silent = {"b"}
    else:
        fuser.attendance.down["b"] = GONE
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == "Not answering: b."
    assert client.get("/health").status_code == 200, "a restart would not help"
    scrape = Scrape(client.get("/metrics").text)
    assert (scrape.value("member_up", member="a"), scrape.value("member_up", member="b")) == (1, 0)


@pytest.mark.parametrize(
    ("lost", "silent", "status"),
    [("b", "", 200), ("a", "", 503), ("ab", "", 503), ("", "b", 503)],
    ids=["another member", "the pivot", "everybody", "hangs"],
)
def test_an_ensemble_that_goes_on_without_a_member_keeps_the_server_ready(
    fuser: ScriptedFuser, lost: str, silent: str, status: int
) -> None:
    pair = replace(ensemble(), on_member_failure="degrade")
    models = {"b": pair.models["b"]}
    own = replace(pair, name="b", models=models, views={"b": View(models, "b", {})})
    fuser.silent = set(silent)
    for name in lost:
        fuser.attendance.down[name] = GONE
    with TestClient(create_app({"pair": pair, "b": own}, fuser, ServerSettings())) as client:
        answer = client.get("/ready")
        assert answer.status_code == status
        if status == 200:
            assert answer.json() == {"status": "degraded", "down": ["b"]}
    with TestClient(create_app({"b": own}, fuser, ServerSettings())) as client:
        assert client.get("/ready").status_code == (503 if "b" in lost + silent else 200)


@pytest.mark.parametrize(("lost", "health"), [("b", 200), ("a", 503)], ids=["another member", "the pivot"])
def test_an_engine_that_is_broken_for_good_fails_health_where_it_is_needed(
    fuser: ScriptedFuser, lost: str, health: int
) -> None:
    """It runs in the server, and only a restart brings it back."""
    fuser.attendance.down[lost] = Down("a worker died", None)
    pair = replace(ensemble(), on_member_failure="degrade")
    with TestClient(create_app({"pair": pair}, fuser, ServerSettings())) as client:
        assert client.get("/health").status_code == client.get("/ready").status_code == health
        if health == 503:
            message = client.get("/health").json()["error"]["message"]
            assert message == "Not answering: a; restart the server."


@pytest.mark.parametrize(("names", "health"), [("a", 503), ("b", 200)], ids=["served", "not served"])
def test_an_engine_that_answers_nothing_fails_health_where_it_is_needed(
    fuser: ScriptedFuser, names: str, health: int
) -> None:
    """Requests reach it all the same: a step that works again is how it is known to be well."""
    fuser.trouble = dict.fromkeys(names, Trouble("its engine failed 3 times in a row", lasting=False))
    pair = ensemble()
    alone = replace(pair, name="a", models={"a": pair.models["a"]}, views={"a": View(pair.models, "a", {})})
    with TestClient(create_app({"a": alone}, fuser, ServerSettings())) as client:
        answer = client.get("/health")
        assert answer.status_code == health
        if health == 503:
            message = answer.json()["error"]["message"]
            assert message == "Not answering: a; restart the server."
        assert client.get("/ready").status_code == 200


def test_a_view_that_is_away_is_spared_like_a_model(fuser: ScriptedFuser) -> None:
    """What is down is its model, by the model's name."""
    pair = replace(ensemble(), on_member_failure="degrade")
    tidy = replace(pair.models["b"], view=ModelView("tidy", system="Be tidy."))
    views = build_ensemble("views", {"a": pair.models["a"], "tidy": tidy}, "a", on_member_failure="degrade")
    fuser.attendance.down["b"] = Down("a worker died", None)
    with TestClient(create_app({"views": views}, fuser, ServerSettings())) as client:
        assert client.get("/health").status_code == 200


def test_members_may_come_and_go_while_health_is_asked(client: TestClient, fuser: ScriptedFuser) -> None:
    """The fuser's thread changes what is down at any moment."""

    class Returning:
        @property
        def retry_after(self) -> float:
            fuser.attendance.down.pop("b", None)
            return 1.0

    fuser.attendance.down |= {"b": Returning(), "c": Returning()}  # type: ignore[dict-item]
    assert client.get("/health").status_code == 200


def test_slow_preparations_keep_threads_from_nobody_else(
    fuser: ScriptedFuser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are: answers, scrapes and the shutdown need threads too."""
    begun, go_on, prepared = threading.Event(), threading.Event(), chat.prepared

    def slow(*args: Any) -> Any:
        begun.set()
        assert go_on.wait(30)
        return prepared(*args)

    monkeypatch.setattr(chat, "prepared", slow)
    app = create_app({"pair": ensemble()}, fuser, ServerSettings())

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tutti") as http:
            asked = [asyncio.create_task(http.post(CHAT_PATH, json=CHAT)) for _ in range(48)]
            try:
                while not begun.is_set() or app.state.lifecycle.in_progress < len(asked):
                    await asyncio.sleep(0.01)
                for path in ("/metrics", "/load"):
                    assert (await asyncio.wait_for(http.get(path), 10)).status_code == 200
            finally:
                go_on.set()
            assert {(await one).status_code for one in asked} == {200}

    asyncio.run(ask())


def test_health_is_the_process(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.stopped = True
    for path in ("/health",):
        assert client.get(path).status_code == 503
    assert client.get("/metrics").status_code == 200


def test_health_and_version(client: TestClient) -> None:
    assert client.get("/health").status_code == 200
    assert client.head("/health").status_code == 200
    assert client.get("/version").json() == {"version": __version__}


def test_health_is_503_once_the_decoding_loop_has_ended(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.stop()
    answer = client.get("/health")
    assert answer.status_code == 503
    assert "restart" in answer.json()["error"]["message"]


def test_ping_answers_as_health_and_load_counts_sequences(client: TestClient, fuser: ScriptedFuser) -> None:
    assert client.get("/ping").json() == client.post("/ping").json() == {"status": "ok"}
    assert client.get("/load").json() == {"server_load": 0, "running": 0, "waiting": 0}
    fuser.stopped = True
    assert client.get("/ping").status_code == 503
