"""Bearer keys: who is let in, and what stays open."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from server.http.app import create_app
from server.settings import ServerSettings
from tests.support.scripted_fuser import ScriptedFuser, ensemble
from tests.support.small_requests import CHAT, CHAT_PATH, error_of

KEYS = ("sk-one", "sk-zwei-ü")


@pytest.fixture
def locked(fuser: ScriptedFuser) -> Iterator[TestClient]:
    with TestClient(create_app({"pair": ensemble()}, fuser, ServerSettings(api_keys=KEYS))) as client:
        yield client


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer sk-on", "Bearer sk-one2", "Basic sk-one", "sk-one", "Bearer \xff"],
)
@pytest.mark.parametrize("path", ["/v1/models", "/tokenizer_info", "/nowhere", "/openapi.json"])
def test_without_a_key_nothing_is_told(locked: TestClient, path: str, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    answer = locked.get(path, headers=headers)
    error = error_of(answer, 401)
    assert error["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", KEYS)
def test_any_of_the_keys_opens(locked: TestClient, key: str) -> None:
    for scheme in ("Bearer", "bearer"):
        answer = locked.get("/v1/models", headers={"authorization": f"{scheme} {key}".encode()})
        assert answer.status_code == 200


def test_health_and_version_stay_open(locked: TestClient) -> None:
    assert locked.get("/health").status_code == 200
    assert locked.get("/version").status_code == 200


def test_keys_are_flows_of_their_own_and_not_told_to_the_fuser(locked: TestClient, fuser: ScriptedFuser) -> None:
    for key in KEYS:
        assert locked.post(CHAT_PATH, json=CHAT, headers={"authorization": f"Bearer {key}".encode()}).is_success
    first, second = (submission.flow for submission in fuser.submissions)
    assert first != second
    assert not any(key in (first, second) for key in KEYS)


def test_keys_stay_out_of_the_options_repr() -> None:
    assert "sk-one" not in repr(ServerSettings(api_keys=KEYS))
