"""Keys from files, and whatever the text: settings or a sentence."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alignment.errors import ConfigError
from server.settings import accepted_keys
from server.settings.document import MAX_BYTES
from tests.support.small_configurations import MINIMAL, PAIR, parse, problems


def test_keys_come_from_the_file_and_the_configuration(tmp_path):
    (tmp_path / "keys").write_text("# ours\nalpha\n\n  beta \n")
    text = MINIMAL + "\nserver: {api_keys: [gamma], api_keys_file: keys}"
    assert accepted_keys(parse(text, folder=tmp_path).server) == ["gamma", "alpha", "beta"]


def test_a_key_file_without_keys_does_not_open_the_server(tmp_path):
    (tmp_path / "keys").write_text("# none yet\n")
    with pytest.raises(ConfigError, match=r"c.yaml:2: server.api_keys_file: .*holds no key"):
        parse(MINIMAL + "\nserver: {api_keys_file: keys}", folder=tmp_path)


def test_keys_that_could_not_be_sent_or_were_cut_off_are_told(tmp_path):
    (tmp_path / "keys").write_text("key\n" * (MAX_BYTES // 4 + 1))
    with pytest.raises(ConfigError, match=r"c.yaml:2: server.api_keys_file: .*is larger than"):
        parse(MINIMAL + "\nserver: {api_keys_file: keys}", folder=tmp_path)
    with pytest.raises(ConfigError, match=r"c.yaml:2: server.api_keys\[1\]: .*white space"):
        parse(MINIMAL + "\nserver: {api_keys: [a, 'b ']}")


def test_a_certificate_that_cannot_be_used_is_known_before_models_are_loaded(tmp_path):
    (tmp_path / "cert.pem").write_text("none")
    for certificate, why in ("cert.pem", "cannot be used"), ("missing.pem", "No such file"):
        with pytest.raises(ConfigError, match=rf"c.yaml:2: server.tls_certificate: .*{why}"):
            parse(MINIMAL + f"\nserver: {{tls_certificate: {certificate}, tls_key: cert.pem}}", folder=tmp_path)


def test_keys_are_never_shown():
    secret = "sk-verysecret"
    settings = parse(MINIMAL + f"\nserver: {{api_keys: [{secret}]}}")
    mistakes = [
        problems(MINIMAL + f"\nserver: {{api_keys: {secret}}}"),
        problems(MINIMAL + f"\nserver: {{api_keys: [[{secret}]]}}"),
        problems(MINIMAL, {"TUTTI_SERVER__API_KEYS": f"[{secret}"}),
        problems(MINIMAL, {"TUTTI_SERVER__API_KEYS": secret}),
    ]
    assert secret not in repr([settings, mistakes])


FRAGMENTS = [
    *(
        "models:",
        "  ada:",
        "{",
        "}",
        "[",
        "]",
        "source: x",
        ": ",
        ", ",
        "\n",
        "  ",
        "- ",
        "&a ",
        "*a",
        "<<: ",
        "? ",
    ),
    *("!!int ", "!!binary ", "!!timestamp ", "!!set ", "!x ", "|", ">", "'", '"', "\\ud800", "\\", "%YAML 9.9\n"),
    *(
        "--- ",
        "...",
        "null",
        "1e999",
        "0x",
        "0o9",
        "12:30",
        "2024-99-99",
        "2024-01-01",
        "~",
        "yes",
        "=",
        "server:",
    ),
    *(
        "ensembles:",
        "members:",
        "pivot:",
        "weights:",
        "api_keys:",
        "port:",
        "ada",
        ".nan",
        "-.inf",
        "\t",
        "\ufeff",
    ),
    *("\u2028", "\x00", "#"),
]


def complaint(text: str, environ: dict[str, str]) -> str | None:
    try:
        parse(text, environ)
    except ConfigError as error:
        return str(error)
    return None


@hypothesis.settings(max_examples=300)
@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=30).map("".join))
@example('models: {"a\\ud800": {source: x}}')
@example('models: {ada: {source: "\\ud800"}}')
@example("models: {ada: {source: '" + "x" * 5000 + "'}}")
@example("models: {ada: {source: x, cache_tokens: " + "9" * 5000 + "}}")
@example("models: {ada: {source: x, revision: !!timestamp x}}")
@example("models: {ada: {source: x, cache_tokens: !!bool x}}")
@example("!!set {models}")
@example("? [a]\n: b")
@example("<<: [1]")
@example("models:  !!int ")
def test_no_text_raises_anything_but_a_config_error(text):
    lines = (complaint(text, {}) or "c.yaml").splitlines()
    assert all(line.startswith("c.yaml") for line in lines), lines


@given(st.dictionaries(st.text(max_size=12).map("TUTTI_{}".format), st.text(max_size=12)))
@example({"TUTTI___": "x"})
@example({"TUTTI_SERVER__": "x"})
@example({"TUTTI_MODELS__ADA__SOURCE": "\ud800"})
def test_no_environment_raises_anything_but_a_config_error(environ):
    assert (complaint(PAIR, environ) or "TUTTI_").startswith("TUTTI_")
