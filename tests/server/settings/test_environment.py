"""Overrides from the environment, and variables that are not ours."""

from __future__ import annotations

import pytest

from tests.support.small_configurations import MINIMAL, PAIR, parse, problems


def test_the_environment_overrides_the_file():
    environ = {
        "TUTTI_SERVER__PORT": "9000",
        "TUTTI_MODELS__ADA__DEVICE": "cuda:0",
        "TUTTI_MODELS__BEN__MAX_CONTEXT": "null",
        "TUTTI_ENSEMBLES__BOTH__WEIGHTS": "{ada: 3, ben: 1}",
        "TUTTI_ENSEMBLES__BOTH__WEIGHTS__BEN": "2",
    }
    settings = parse(PAIR, environ)
    assert settings.server.port == 9000
    assert settings.models["ada"].device == "cuda:0"
    assert settings.ensembles["both"].weights == {"ada": 3, "ben": 2}


def test_a_variable_reaches_names_that_a_variable_cannot_spell():
    text = "models: {Qwen/Qwen-0.5b: {source: q}}"
    settings = parse(text, {"TUTTI_MODELS__QWEN_QWEN_0_5B__DTYPE": "float32"})
    assert settings.models["Qwen/Qwen-0.5b"].dtype == "float32"


def test_names_of_variables_for_a_worker_are_kept():
    variable = "TUTTI_MODELS__ADA__WORKER__ENVIRONMENT__OMP_NUM_THREADS"
    settings = parse(MINIMAL.replace("ada: {", "ada: {host: process, "), {variable: "'4'"})
    assert settings.models["ada"].worker.environment == {"OMP_NUM_THREADS": "4"}


def test_variables_that_others_set_are_left_alone():
    """Kubernetes services called tutti and tutti-server put these into every container beside them."""
    environ = {
        "TUTTI_SERVER_PORT": "tcp://10.0.0.1:8000",
        "TUTTI_SERVER_SERVICE_PORT": "8000",
        "TUTTI_SERVER_PORT_8000_TCP_ADDR": "10.0.0.1",
        "TUTTI_PORT": "tcp://10.0.0.1:8000",
        "TUTTI_SERVICE_HOST": "10.0.0.1",
        "TUTTI_API_KEY": "k",
        "HOME": "/",
    }
    assert parse(PAIR, environ) == parse(PAIR)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("TUTTI_SERVER__PORT", "http", "server.port: found 'http'; should be a whole number."),
        ("TUTTI_SERVER__PROT", "1", "server.prot: unknown field (did you mean 'port'?)"),
        ("TUTTI_SERVE__PORT", "1", "serve: unknown field (did you mean 'server'?)"),
        ("TUTTI_MODELS__EVE__DEVICE", "cpu", "there is no model 'eve'; the file has ada, ben."),
        ("TUTTI_ENSEMBLES__ALL__PIVOT", "ada", "there is no ensemble 'all'; the file has both."),
        (
            "TUTTI_ENSEMBLES__BOTH__PIVOT",
            "eve",
            "ensembles.both.pivot: 'eve' is no member; allowed: ada, ben, auto.",
        ),
        ("TUTTI_ENSEMBLES__BOTH__MEMBERS", "[ada", "does not hold a YAML value; put text in quotes."),
        ("TUTTI_MODELS__ADA__SOURCE__X", "1", "models.ada.source: found a mapping; should be text."),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(variable, value, message):
    assert problems(PAIR, {variable: value})[0].startswith(f"{variable}: {message}")


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("TUTTI_SERVER_PORT", "TUTTI_SERVER__PORT"),
        ("TUTTI_SERVER_API_KEYS", "TUTTI_SERVER__API_KEYS"),
        ("TUTTI_MODELS_ADA_DEVICE", "TUTTI_MODELS__ADA__DEVICE"),
        ("TUTTI_ENSEMBLES_BOTH_WEIGHTS", "TUTTI_ENSEMBLES__BOTH__WEIGHTS"),
    ],
)
def test_a_variable_with_single_underscores_is_not_ignored(variable, meant):
    assert problems(PAIR, {variable: "9000"}) == [
        f"{variable}: has no effect; write {meant}, two underscores between names."
    ]


def test_a_variable_that_fits_two_names():
    text = "models: {a-b: {source: x}, a.b: {source: y}}"
    assert problems(text, {"TUTTI_MODELS__A_B__DEVICE": "cpu"}) == [
        "TUTTI_MODELS__A_B__DEVICE: fits both 'a-b' and 'a.b'; rename one of them."
    ]
