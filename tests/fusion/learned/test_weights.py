"""Learned weights: the file, and the weights of a prompt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from alignment.errors import ConfigError
from fusion.calibrate.fitting import fit
from fusion.learned.features import PromptLosses, words
from fusion.learned.weights import FORMAT, VERSION, LearnedWeights, equal_weights
from tests.support.scored_questions import TEXTS, fingerprints, scored
from tests.support.scripted_fuser import ensemble

MEMBERS = ["a", "b"]
QUESTION = TEXTS["sums"].format(n=77)


@pytest.fixture(scope="module")
def learned() -> LearnedWeights:
    questions = scored({"sums": [0.9, 0.3], "towns": [0.3, 0.9]}, 15)
    return fit(questions, ensemble(), fingerprints(2)).weights


def test_a_file_holds_all_of_it_and_is_small(learned: LearnedWeights, tmp_path: Path):
    path = tmp_path / "learned.safetensors"
    learned.save(path)
    again = LearnedWeights.load(path)
    assert again.digest == learned.digest
    assert again.about == learned.about
    assert again.weigh(QUESTION, MEMBERS).weights.tolist() == learned.weigh(QUESTION, MEMBERS).weights.tolist()
    assert path.stat().st_size < 300_000
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@given(st.text(max_size=2000))
def test_any_prompt_gets_weights_that_sum_to_one(learned: LearnedWeights, text: str):
    decision = learned.weigh(text, MEMBERS)
    assert decision.weights.sum() == pytest.approx(1)
    assert (decision.weights >= 0).all()


def test_a_part_of_the_members_shares_the_weight(learned: LearnedWeights):
    assert learned.weigh(QUESTION, ["b"]).weights.tolist() == [1.0]


def test_other_members_weigh_the_same(learned: LearnedWeights):
    decision = learned.weigh(QUESTION, ["a", "stranger"])
    assert decision.weights.tolist() == [0.5, 0.5]
    assert "other members" in str(decision.note)


def test_long_prompts_are_read_at_both_ends():
    found = words("first " + "filler " * 100_000 + "last 12345")
    assert (found[0], found[-2:]) == ("first", ["last", "0"])
    assert len(found) < 1000


def test_weights_that_need_losses_are_equal_without_them(learned: LearnedWeights):
    from dataclasses import replace

    about = replace(learned.about, kind="text and losses")
    needing = replace(learned, about=about)
    assert needing.needs_losses
    assert "could not be measured" in str(needing.weigh(QUESTION, MEMBERS).note)
    losses = PromptLosses(np.array([3.0, 3.1]), np.array([3.0, 3.1]))
    assert needing.weigh(QUESTION, MEMBERS, losses).note is None


def test_the_stand_in_says_why(tmp_path: Path):
    stand_in = equal_weights(fingerprints(2), "because")
    assert stand_in.weigh("anything", MEMBERS).note == "because"
    stand_in.save(tmp_path / "equal.safetensors")
    assert LearnedWeights.load(tmp_path / "equal.safetensors").weigh("x", MEMBERS).weights.tolist() == [0.5, 0.5]


def changed(path: Path, metadata: dict[str, str | None] = {}, **arrays: np.ndarray) -> Path:  # noqa: B006
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        before = file.metadata()
    after = {name: value for name, value in (before | metadata).items() if value is not None}
    save_file(load_file(path) | arrays, path, after)
    return path


@pytest.mark.parametrize(
    ("metadata", "arrays", "message"),
    [
        ({"format": "another"}, {}, "holds no learned weights"),
        ({"version": "2"}, {}, "version '2'"),
        ({"about": None}, {}, "is damaged"),
        ({"about": "{}"}, {}, "is damaged"),
        ({"about": "not json"}, {}, "is damaged"),
        ({"about": "[" * 100_000}, {}, "is damaged"),
        ({}, {"bias": np.zeros(3)}, "is damaged"),
        ({}, {"bias": np.array([np.nan, 0.0])}, "is damaged"),
        ({}, {"rows": np.full(3, 10**8, np.int32)}, "is damaged"),
        ({}, {"starts": np.array([5, 1])}, "is damaged"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_a_sentence(
    learned: LearnedWeights, tmp_path: Path, metadata, arrays, message
):
    path = tmp_path / "learned.safetensors"
    learned.save(path)
    with pytest.raises(ConfigError, match=message):
        LearnedWeights.load(changed(path, metadata, **arrays))


@pytest.mark.parametrize("content", [None, b"", b"nonsense", b"\x80" * 100])
def test_what_is_no_such_file_is_refused_in_a_sentence(tmp_path: Path, content: bytes | None):
    path = tmp_path / "learned.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="calibrate --learn-weights"):
        LearnedWeights.load(path)


def test_the_description_is_json(learned: LearnedWeights, tmp_path: Path):
    from safetensors import safe_open

    path = tmp_path / "learned.safetensors"
    learned.save(path)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["version"]) == (FORMAT, VERSION)
    assert list(json.loads(metadata["about"])["members"]) == MEMBERS
