"""The `fusion` field of requests, and the report of answers."""

from __future__ import annotations

from starlette.testclient import TestClient

from fusion.core import Delta, End
from fusion.options import FusionParams
from server.http.app import create_app
from server.settings import ServerSettings
from tests.support.scripted_fuser import END, ScriptedFuser, ensemble, report, token
from tests.support.small_requests import chat, complete


def test_fusion_of_a_request_overrides_the_defaults(fuser: ScriptedFuser) -> None:
    defaults = FusionParams(weights={"a": 0.25, "b": 0.75}, filter_top=20)
    with TestClient(create_app({"pair": ensemble(defaults=defaults)}, fuser, ServerSettings())) as client:
        chat(client)
        assert fuser.last.fusion == defaults
        chat(client, fusion={"weights": {"a": 3, "b": 1}, "combine": "product"})
        assert fuser.last.fusion == FusionParams(weights={"a": 0.75, "b": 0.25}, combine="product", filter_top=20)
        chat(client, fusion={"filter_top": None})
        assert fuser.last.fusion.filter_top is None
        chat(client, fusion={"members": ["a"]})
        assert fuser.last.fusion == FusionParams(members=("a",), weights={"a": 1.0}, filter_top=20)
        chat(client, fusion={"weights": {"b": 1e308}})
        assert fuser.last.fusion.weights == {"a": 0, "b": 1}
        chat(client, fusion={"weights": {"a": 1e308, "b": 1e308}})
        assert fuser.last.fusion.weights == {"a": 0.5, "b": 0.5}


def test_a_report_lies_in_each_choice(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda s: [
        Delta("a", (token(b"a"),)),
        End(
            "",
            (token(b""),),
            finish="stop",
            rounds=(report(97), report(END)),
            departed={"b": "it failed"},
            returned={"b": 1},
        ),
    ]
    in_chat = chat(client, n=2, fusion={"report": True})["choices"]
    in_text = complete(client, fusion={"report": True})["choices"]
    for choice in (*in_chat, *in_text):
        told = choice["fusion"]
        assert (told["pivot"], told["members"], told["departed"]) == ("a", ["a", "b"], {"b": "it failed"})
        assert told["returned"] == {"b": 1}
        assert [entry["token"] for entry in told["rounds"]] == [97, END]
        assert told["rounds"][0]["contribution"] == {"a": 0.75, "b": 0.25}
        assert told["rounds"][0]["rolled_back"] == {"a": 0, "b": 1}
    assert "fusion" not in chat(client)["choices"][0]
