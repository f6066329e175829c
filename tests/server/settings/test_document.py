"""Texts that are no configuration at all."""

from __future__ import annotations

import pytest

from alignment.errors import ConfigError
from server.settings import read_settings
from tests.support.small_configurations import problems


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "c.yaml: the file is empty; it needs at least one entry under 'models'."),
        ("- a\n", "c.yaml:1: should be a mapping with 'models', not a list."),
        ("hello", "c.yaml:1: should be a mapping with 'models', not a single value."),
        (
            "a: 1\n---\nb: 2\n",
            "c.yaml:2: not valid YAML: expected a single document in the stream",
        ),
        ("a: [1\nb: 2", "c.yaml:2: not valid YAML: while parsing a flow sequence"),
        ("a: \x07", "c.yaml:1: not valid YAML: unprintable characters are not allowed."),
        ("models: {}", "c.yaml:1: models: found an empty mapping; should not be empty."),
        ("a: " + "[" * 17 + "]" * 17, "c.yaml:1: nested more than 16 levels deep."),
        ("a: &a [*a]", "c.yaml:1: aliases repeat each other into something too large."),
        ("#" * 300_000, "c.yaml: larger than 256 KiB"),
        ("a: !!int x", "c.yaml:1: 'x' is not a value of its type; put text in quotes."),
    ],
)
def test_text_that_is_no_configuration_at_all(text, message):
    assert problems(text)[0].startswith(message)


def test_aliases_cannot_blow_up():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "too large" in problems("\n".join(lines))[0]


def test_a_file_that_is_not_text_or_not_there(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"models: \xff")
    cases = {"c.yaml": "not UTF-8 text", ".": "directory", "d.yaml": "No such file"}
    for path, sentence in cases.items():
        with pytest.raises(ConfigError, match=sentence):
            read_settings(tmp_path / path, {})
