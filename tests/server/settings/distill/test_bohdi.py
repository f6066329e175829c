"""Files of `tutti distill bohdi`: what they lead to, and what is wrong with them in one line each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alignment.errors import ConfigError
from fusion.distill.bohdi.settings import Explore, Judge, Learn, Rules, Tree
from fusion.distill.training.settings import Source
from server.settings.distill.bohdi import read_bohdi

FILE = """\
name: taught
base: ada
sources: {ben: ben, eve: {source: eve, max_sequences: 8}}
work: work
out: out
"""


def read(folder: Path, more: str = "", file: str = FILE):
    for name in ("ada", "ben", "eve", "mia"):
        (folder / name).mkdir(exist_ok=True)
    path = folder / "run.yaml"
    path.write_text(file + more)
    return read_bohdi(path)


def test_a_short_file_has_the_defaults(tmp_path):
    settings, evaluated = read(tmp_path)
    assert evaluated is None
    assert settings.base.source == str(tmp_path / "ada")
    assert settings.sources["eve"] == Source(str(tmp_path / "eve"), max_sequences=8)
    assert settings.asking == settings.sources
    assert (settings.tree, settings.explore, settings.rules) == (Tree(), Explore(), Rules())
    assert (settings.judge, settings.learn) == (Judge(), Learn())
    assert (settings.train.lm_weight, settings.train.patience) == (1.0, None)


def test_every_part_can_be_set(tmp_path):
    settings, evaluated = read(
        tmp_path,
        "leaders: {mia: mia}\n"
        "domains: [[a, b], [c]]\n"
        "tree: {levels: 2, window: null}\n"
        "explore: {draws: fixed, questions: 0, seed: 3}\n"
        "rules: {exclude: [test.jsonl]}\n"
        "judge: {by: fused, members: [target, eve], pivot: eve}\n"
        "prompts: {question: 'Ask about {path}.'}\n"
        "learn: {samples: 10}\n"
        "train: {steps: 5}\n"
        "evaluate: {tasks: [test.jsonl], pivot: ben}\n",
    )
    assert set(settings.asking) == {"mia"}
    assert settings.domains == (("a", "b"), ("c",))
    assert settings.tree.window is None
    assert settings.rules.exclude == (tmp_path / "test.jsonl",)
    assert settings.judge.members == ("target", "eve")
    assert settings.train.steps == 5
    assert evaluated.tasks == [str(tmp_path / "test.jsonl")]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("leaders: {ben: x}\n", "leaders.ben: a source has that name"),
        ("domains: [[a, b, c, d]]\n", "domains[0]: has 4 names, but the tree 3 levels"),
        ("explore: {draws: fixed}\n", "domains: lists no path of 3 names, which draws: fixed needs"),
        ("judge: {source: mia}\n", "judge.source: there is no source 'mia'; allowed: ben, eve"),
        ("judge: {members: [mia]}\n", "judge.members[0]: there is no model 'mia'; allowed: target, ben, eve"),
        ("judge: {members: [ben, ben]}\n", "judge.members: a member is listed twice"),
        ("judge: {members: [ben], pivot: eve}\n", "judge.pivot: 'eve' is no member; allowed: ben"),
        ("prompts: {question: Ask.}\n", "prompts.question: lacks {path}"),
        (
            "prompts: {judge: '{question} {answers} {winner}'}\n",
            "prompts.judge: holds {winner}; allowed: {answers}",
        ),
        ("prompts: {domain: 'Name {'}\n", "prompts.domain: cannot be read"),
        ("train: {lm_weight: 0.5}\n", "train.lm_weight"),
        ("explore: {questions: -1}\n", "explore.questions"),
        (
            "evaluate: {tasks: [t], pivot: mia}\n",
            "evaluate.pivot: there is no model 'mia'; allowed: base, ben, eve",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_line(tmp_path, more, sentence):
    with pytest.raises(ConfigError, match=rf"run.yaml:\d+: {re.escape(sentence)}"):
        read(tmp_path, more)


@pytest.mark.parametrize(("out", "lost"), [("work", "work"), (".", "work"), (".", "base"), ("eve", "sources.eve")])
def test_a_result_does_not_replace_what_it_is_made_of(tmp_path, out, lost):
    with pytest.raises(ConfigError, match=rf"run.yaml:\d+: out: holds {lost}, which would be lost"):
        read(tmp_path, file=FILE.replace("out: out", f"out: {out}"))


@pytest.mark.parametrize(
    ("more", "lost"),
    [
        ("leaders: {mia: out/mia}\n", "leaders.mia"),
        ("rules: {exclude: [out/test.jsonl]}\n", "rules.exclude"),
        ("evaluate: {tasks: [out/test.jsonl]}\n", "evaluate.tasks"),
    ],
)
def test_nor_what_asks_and_tests_it(tmp_path, more, lost):
    (tmp_path / "out" / "mia").mkdir(parents=True)
    with pytest.raises(ConfigError, match=rf"run.yaml:\d+: out: holds {lost}, which would be lost"):
        read(tmp_path, more)


@pytest.mark.parametrize("name", ["target", "base", "start", "round-2", "judges", "ensemble"])
def test_names_of_the_target_and_of_what_is_asked_are_taken(tmp_path, name):
    with pytest.raises(ConfigError, match=f"sources.{name}: the name is taken by"):
        read(tmp_path, file=FILE.replace("ben: ben", f"{name}: ben"))


@pytest.mark.parametrize("name", ["target", "base", "judges"])
def test_names_that_are_taken_are_no_leaders(tmp_path, name):
    with pytest.raises(ConfigError, match=rf"run.yaml:\d+: leaders.{name}: the name is taken by"):
        read(tmp_path, f"leaders: {{{name}: mia}}\n")


@pytest.mark.parametrize("name", ["base", "ensemble", "start", "target-x", "merged-x", "round-1"])
def test_a_result_has_a_name_of_its_own(tmp_path, name):
    with pytest.raises(ConfigError, match=r"run.yaml:\d+: name: the name is taken by"):
        read(tmp_path, file=FILE.replace("name: taught", f"name: {name}"))
