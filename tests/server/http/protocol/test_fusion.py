"""The `fusion` field of requests, and the report of answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from alignment.errors import InvalidRequestError
from fusion.core import Delta, End
from fusion.options import FusionParams, Weighting
from server.http.app import create_app
from server.http.protocol.fusion import FusionFields, WeightingFields, fusion_params
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


@pytest.mark.parametrize(
    ("grid", "positions", "allowed"),
    [(21, 24, True), (100, 10, True), (100, 11, False), (2, 47, True), (2, 48, False)],
)
def test_a_search_that_would_hold_up_everybody_is_refused(grid: int, positions: int, allowed: bool) -> None:
    """The positions alone cost something, so a small grid counts as the usual one."""
    weighting = {"grid": grid, "positions": positions}
    asked = FusionFields.model_validate({"weights": "packllm-opt", "weighting": weighting})
    if allowed:
        assert fusion_params(asked, ensemble(), 1000).weighting.grid == grid
        return
    with pytest.raises(InvalidRequestError, match="this server allows") as caught:
        fusion_params(asked, ensemble(), 1000)
    assert caught.value.param == "fusion.weighting"


def test_a_search_with_more_members_is_more_work() -> None:
    asked = FusionFields.model_validate({"weights": "packllm-opt", "weighting": {"positions": 40}})
    pair = ensemble()
    three = replace(pair, models=pair.models | {"c": pair.models["b"]})
    assert fusion_params(asked, pair, 1000).weighting.positions == 40
    with pytest.raises(InvalidRequestError, match="with 3 members; this server allows 23 positions"):
        fusion_params(asked, three, 1000)


def test_what_an_ensemble_is_configured_with_is_allowed() -> None:
    weighting = Weighting(method="packllm-opt", grid=1001, positions=4096)
    configured = ensemble(defaults=FusionParams(weighting=weighting))
    asked = FusionFields(weighting=WeightingFields(prune=0.1))
    assert fusion_params(asked, configured, 1000).weighting == replace(weighting, prune=0.1)
