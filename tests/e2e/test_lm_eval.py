"""lm-evaluation-harness against a real server, on a task made from the demo's held-out questions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Server
from tests.e2e.demo import CONFIG, ENSEMBLE, REPOSITORY
from tests.e2e.lm_eval_runs import MEMBER

EVERY = 25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which the task finds a part of the questions."""
    folder = tmp_path_factory.mktemp("lm_eval")
    questions = folder / "deploy" / "demo" / "test.jsonl"
    questions.parent.mkdir(parents=True)
    rows = (CONFIG.parent / "demo" / "test.jsonl").read_text().splitlines(keepends=True)
    questions.write_text("".join(rows[::EVERY]))
    return folder


@pytest.fixture(scope="module")
def accuracies(server: Server, folder: Path) -> dict[str, float]:
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "OPENAI_API_KEY": "none"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.e2e.lm_eval_runs", server.url],
        cwd=folder,
        env=os.environ | offline | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def evaluated(server: Server, folder: Path) -> dict[str, float]:
    """What `tutti eval` says of the same questions."""
    out = folder / "eval.json"
    tasks = folder / "deploy" / "demo" / "test.jsonl"
    arguments = ["--url", server.url, "--tasks", tasks, "--models", ENSEMBLE, "--models", MEMBER, "--json", out]
    command = [sys.executable, "-m", "server", "eval", *map(str, arguments)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, timeout=120)
    summaries = json.loads(out.read_text())["summary"]
    return {one["model"]: one["total"]["exact"]["mean"] for one in summaries}


def test_chats_are_as_accurate_as_in_our_own_evaluation(accuracies, evaluated):
    assert accuracies["chat"] == pytest.approx(evaluated[ENSEMBLE])
    assert accuracies["chat"] > 0.5


def test_so_are_a_models_own_token_ids(accuracies, evaluated):
    assert accuracies["member"] == pytest.approx(evaluated[MEMBER])


def test_the_likelihoods_of_an_echo_tell_right_from_wrong(accuracies):
    assert accuracies["choice"] > 0.6
