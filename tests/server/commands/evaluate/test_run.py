"""`tutti eval` from a configuration to its table."""

from __future__ import annotations

import json

import pytest

from tests.support.model_folders import run


def test_eval_loads_a_configuration_and_asks_every_served_name(site, tmp_path):
    code, out, _ = run(
        "eval", site / "tutti.yaml", "--max-tokens", "4", "--json", tmp_path / "r.json", "--limit", "2"
    )
    assert code == 0
    assert all(name in out for name in ("both", "ada", "ben", "sums"))
    answers = json.loads((tmp_path / "r.json").read_text())["answers"]
    assert [(a["model"], a["question"]["id"]) for a in answers] == [
        (m, q) for m in ("both", "ada", "ben") for q in "01"
    ]
    assert all(a["finish_reason"] for a in answers)


def test_eval_asks_a_model_without_a_chat_template_in_plain_text(broken):
    (broken / "ben" / "chat_template.jinja").unlink()
    options = ("eval", broken / "tutti.yaml", "--models", "ben", "--max-tokens", "4", "--limit", "1")
    code, out, err = run(*options)
    assert (code, out) == (1, "")
    said = (
        "'ben' cannot be asked in a chat because it has no chat template; give --completions to ask in plain text."
    )
    assert err.splitlines()[-1] == said
    code, out, _ = run(*options, "--completions", "--template", "Q: {prompt} A:", "--stop", "Q:")
    assert (code, "sums" in out) == (0, True)


@pytest.mark.parametrize("options", [("--template", "{prompt}"), ("--completions", "--template", "Q:")])
def test_a_template_is_for_completions_and_holds_the_question(site, options):
    code, _, err = run("eval", site / "tutti.yaml", *options)
    assert (code, err.startswith("--template is for --completions, and needs {prompt}")) == (2, True)


def test_eval_wants_one_thing_to_evaluate_and_something_to_ask(site, broken):
    assert run("eval")[0] == 2
    assert run("eval", site / "tutti.yaml", "--url", "http://x")[0] == 2
    code, _, err = run("eval", "--url", "http://127.0.0.1:9")
    assert (code, err.startswith("Nothing to ask")) == (2, True)
    code, _, err = run("eval", "--url", "http://127.0.0.1:9", "--tasks", site / "tasks.jsonl")
    assert (code, err.startswith("http://127.0.0.1:9 cannot be evaluated")) == (1, True)
    code, _, err = run("eval", "--url", "http://a:b", "--tasks", site / "tasks.jsonl")
    assert (code, err.startswith("http://a:b is no URL: ")) == (2, True)
