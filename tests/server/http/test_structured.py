"""Structured output of the demo's ensemble: every finished answer satisfies what was asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from server.http.app import create_app
from server.loading import build
from server.settings import read_settings
from tests.support.random_examples import at_least
from tests.support.small_requests import error_of
from tools.schemas import drawn, outcome

DEMO = Path(__file__).parents[3] / "deploy" / "demo" / "models"
USER = [{"role": "user", "content": "Hello"}]
PATH = "/v1/chat/completions"

leaves = st.sampled_from(
    [
        {"type": "boolean"},
        {"type": "null"},
        {"type": "integer", "minimum": 0, "maximum": 99},
        {"type": "string", "maxLength": 4},
        {"enum": ["red", "gré", 3, None]},
        {"type": "string", "pattern": "^[a-c]{1,3}$"},
    ]
)


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    closed = {"type": "object", "required": list(properties), "additionalProperties": False}
    return closed | {"properties": properties}


schemas = st.recursive(
    leaves,
    lambda inner: (
        st.builds(lambda items: {"type": "array", "items": items, "maxItems": 2}, inner)
        | st.builds(_object, st.dictionaries(st.sampled_from(["a", "bé", "c d"]), inner, min_size=1, max_size=2))
        | st.builds(lambda one, other: {"anyOf": [one, other]}, inner, inner)
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def duo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    names = ["abacus", "almanac"]
    config = {
        "models": {name: {"source": str(DEMO / name), "dtype": "float32"} for name in names},
        "ensembles": {"duo": {"members": names, "pivot": names[0]}},
    }
    path = tmp_path_factory.mktemp("duo") / "duo.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    read = read_settings(path, {})
    runtime = build(read)
    with TestClient(create_app(runtime.ensembles, runtime.fuser, read.server)) as client:
        yield client


def ask(client: TestClient, **fields: Any) -> dict[str, Any]:
    answer = client.post(PATH, json={"model": "duo", "messages": USER, "max_tokens": 120, **fields})
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


def test_every_finished_answer_satisfies_its_schema(duo: TestClient) -> None:
    finished = 0

    @given(schema=schemas, seed=st.integers(0, 9))
    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    def answers(schema: dict[str, Any], seed: int) -> None:
        nonlocal finished
        format = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
        choice = ask(duo, response_format=format, seed=seed)
        if choice["finish_reason"] == "stop":
            jsonschema.validate(json.loads(choice["message"]["content"]), schema)
            finished += 1

    answers()
    assert finished >= at_least(20)


def test_drawn_schemas_are_followed_or_refused(duo: TestClient) -> None:
    found = {seed: outcome(duo, "duo", drawn(seed), seed, max_tokens=120) for seed in range(12)}
    assert {seed for seed, how in found.items() if how == "refused"} == {11}
    assert not [how for how in found.values() if how not in ("valid", "cut", "refused")]
    assert [*found.values()].count("valid") >= 6


@pytest.mark.parametrize(
    "format",
    [
        {"type": "json_schema", "json_schema": {"name": "x"}},
        {"type": "json_schema", "json_schema": {"name": "x", "strict": False}},
        {"type": "json_object"},
    ],
)
def test_a_format_that_is_not_strict_is_followed_as_far_as_it_can_be(
    duo: TestClient, format: dict[str, Any]
) -> None:
    """As OpenAI's. What a `set[str]`, a path and an address come to cannot be enforced in full."""
    schema = _object(
        {
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True, "maxItems": 2},
            "path": {"type": "string", "format": "path", "maxLength": 3},
            "mail": {"type": "string", "pattern": "^(?!a)", "maxLength": 3},
            "kind": {"oneOf": [{"enum": ["x"]}, {"type": "string", "maxLength": 1}]},
        }
    )
    if format["type"] == "json_schema":
        format = format | {"json_schema": format["json_schema"] | {"schema": schema}}
    else:
        format = format | {"schema": schema}
    answer = json.loads(ask(duo, response_format=format)["message"]["content"])
    assert [*answer] == ["tags", "path", "mail", "kind"]
    assert set(answer["tags"]) <= {"a", "b"}
    assert all(len(answer[name]) <= 3 for name in ("tags", "path", "mail", "kind"))
    strict = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    refused = duo.post(PATH, json={"model": "duo", "messages": USER, "response_format": strict})
    assert "uniqueItems" in error_of(refused, 400)["message"]


def test_a_structural_tag_is_completed_once_it_is_begun(duo: TestClient) -> None:
    structure = {"begin": "<city>", "schema": {"enum": ["Bern", "Rom"]}, "end": "</city>"}
    legacy = {"type": "structural_tag", "structures": [structure], "triggers": ["<city"]}
    assert "<" not in ask(duo, response_format=legacy, temperature=0)["message"]["content"]
    sign = duo.post("/tokenize", json={"model": "duo", "prompt": "a<", "add_special_tokens": False}).json()
    begun = ask(
        duo,
        response_format=legacy | {"triggers": ["<"]},
        logit_bias={str(sign["tokens"][-1]): 100},
        max_tokens=30,
    )
    assert re.match('<city>"(Bern|Rom)"</city><city>', begun["message"]["content"])
    tag = {
        "begin": "<city>",
        "content": {"type": "json_schema", "json_schema": {"enum": ["Bern"]}},
        "end": "</city>",
    }
    format = {"type": "triggered_tags", "triggers": ["<city"], "tags": [tag], "at_least_one": True,
              "stop_after_first": True}  # fmt: skip
    choice = ask(duo, response_format={"type": "structural_tag", "format": format})
    assert choice["message"]["content"] == '<city>"Bern"</city>'
    for wrong in ({"type": "structural_tag"}, legacy | {"triggers": ["<town"]}, legacy | {"structures": [{}]}):
        error_of(duo.post(PATH, json={"model": "duo", "messages": USER, "response_format": wrong}), 400)


def test_one_of_the_choices_is_the_answer(duo: TestClient) -> None:
    assert ask(duo, structured_outputs={"choice": ["yes", "no"]})["message"]["content"] in ("yes", "no")
    assert ask(duo, guided_regex="[0-9]{3}", model="abacus")["message"]["content"].isdigit()


def test_bad_words_do_not_occur(duo: TestClient) -> None:
    text = ask(duo, bad_words=["e", "th"], seed=1, max_tokens=40)["message"]["content"]
    assert "e" not in text
    assert "th" not in text


def test_a_required_tool_is_called(duo: TestClient) -> None:
    tool = {"name": "weather", "parameters": _object({"city": {"enum": ["Bern", "Rom"]}})}
    choice = ask(
        duo,
        tools=[{"type": "function", "function": tool}],
        tool_choice={"type": "function", "function": {"name": "weather"}},
    )
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["city"] in ("Bern", "Rom")


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"strict": True, "schema": {"not": {}}}}},
            "response_format",
            "not",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "stringy"}}}},
            "response_format",
            "stringy",
        ),
        ({"guided_json": {"type": "array", "uniqueItems": True}}, "guided_json", "uniqueItems"),
        ({"structured_outputs": {"json": {"format": "path"}}}, "structured_outputs.json", "path"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "xml"),
        ({"guided_regex": "("}, "guided_regex", "guided_regex"),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_regex", "guided_json"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos", "guided_regex"),
        ({"allowed_token_ids": []}, "allowed_token_ids", "empty"),
    ],
)
def test_what_cannot_be_enforced_is_named(duo: TestClient, fields: dict[str, Any], param: str, says: str) -> None:
    error = error_of(duo.post(PATH, json={"model": "duo", "messages": USER, **fields}), 400)
    assert error["param"] == param
    assert says in error["message"]
