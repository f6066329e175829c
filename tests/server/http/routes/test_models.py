"""The list of served names."""

from __future__ import annotations

from starlette.testclient import TestClient

from tests.support.scripted_fuser import CONTEXT


def test_models_are_listed_and_found(client: TestClient) -> None:
    listed = client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["pair", "other/one"]
    one = client.get("/v1/models/other/one").json()
    assert one == listed["data"][1]
    assert one["object"] == "model"
    assert one["max_model_len"] == CONTEXT
    assert one["fusion"] == {"pivot": "a", "members": ["a", "b"]}
