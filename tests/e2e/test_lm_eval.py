"""lm-evaluation-harness against a real server, on tasks made from the demo's held-out questions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.demo import CONFIG, ENSEMBLE, REPOSITORY
from tests.support.lm_eval_runs import MEMBER, results
from tests.support.serving import Server

EVERY = 25

pytestmark = pytest.mark.timeout(1200)  # of which the runs of lm-evaluation-harness may take most


@dataclass(frozen=True)
class Result:
    """How accurate a model is, and what it said by question."""

    accuracy: float
    said: dict[str, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which the tasks find a part of the questions."""
    folder = tmp_path_factory.mktemp("lm_eval")
    questions = folder / "deploy" / "demo" / "test.jsonl"
    questions.parent.mkdir(parents=True)
    rows = (CONFIG.parent / "demo" / "test.jsonl").read_text().splitlines(keepends=True)
    questions.write_text("".join(rows[::EVERY]))
    return folder


@pytest.fixture(scope="module")
def theirs(server: Server, folder: Path) -> dict[str, Result]:
    """What lm-evaluation-harness finds, by run."""
    return {name: Result(**found) for name, found in results(folder, server.url).items()}


def evaluated(server: Server, folder: Path, *options: str) -> dict[str, Result]:
    """What `tutti eval` finds for the same questions, by model."""
    out, tasks = folder / "eval.json", folder / "deploy" / "demo" / "test.jsonl"
    arguments = ["--url", server.url, "--tasks", tasks, "--models", ENSEMBLE, "--models", MEMBER, "--json", out]
    command = [sys.executable, "-m", "server", "eval", *map(str, arguments), *options]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, timeout=600)
    written = json.loads(out.read_text())
    return {
        one["model"]: Result(
            one["total"]["exact"]["mean"],
            {a["question"]["id"]: a["text"] for a in written["answers"] if a["model"] == one["model"]},
        )
        for one in written["summary"]
    }


@pytest.fixture(scope="module")
def chats(server: Server, folder: Path) -> dict[str, Result]:
    return evaluated(server, folder)


@pytest.fixture(scope="module")
def texts(server: Server, folder: Path) -> dict[str, Result]:
    return evaluated(server, folder, "--completions", "--template", "{prompt}\n")


def test_chats_are_answered_as_in_our_own_evaluation(theirs, chats):
    assert theirs["chat"] == chats[ENSEMBLE]
    assert theirs["chat"].accuracy > 0.5


def test_so_is_a_chat_in_a_models_own_token_ids(theirs, chats):
    assert theirs["rendered"] == chats[MEMBER]


def test_so_is_plain_text_for_an_ensemble_and_for_one_model(theirs, texts):
    assert theirs["text"] == texts[ENSEMBLE]
    assert theirs["member's text"] == texts[MEMBER]
    for one in texts.values():  # neither all right nor all wrong, and not what a chat says
        assert 0.3 < one.accuracy < 0.9


def test_so_is_the_text_in_token_ids_of_the_pivot(theirs, texts):
    assert theirs["ids"] == texts[ENSEMBLE]


def test_the_likelihoods_of_an_echo_tell_right_from_wrong(theirs):
    assert theirs["choice"].accuracy > 0.6
