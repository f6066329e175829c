"""A run killed with SIGKILL, while it gathers, writes its journal or trains, ends the same after a rerun."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.distillable import files_of

PROGRAM = """
import os, pickle, signal, sys
from pathlib import Path
from fusion.distill.bohdi import journal, run
from tests.support.scripted_voices import ScriptedVoices, opening

settings, when = pickle.loads(Path(sys.argv[1]).read_bytes())
kill = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
voices = ScriptedVoices()
run.open_voices = opening(voices)
if when == "while it is answered":
    voices.reply = lambda request: kill() if request.schema is None and len(voices.asked) > 20 else None
if when == "while the journal is written":
    written = journal.json.dumps
    def half(event, **options):
        if event == journal.COMMIT and journal.Path(settings.work / "journal.jsonl").exists():
            with (settings.work / "journal.jsonl").open("a") as file:
                file.write('{"event": "sample", "rou')
            kill()
        return written(event, **options)
    journal.json.dumps = half

def progress(what, done, total):
    if when == (what, done):
        kill()

run.Run(settings, progress).run()
"""


def attempt(settings, folder: Path, when=None):
    given = folder / "given.pickle"
    given.write_bytes(pickle.dumps((settings, when)))
    return subprocess.run([sys.executable, "-c", PROGRAM, given], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def unbroken(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    settings = replace(models, work=folder / "work", out=folder / "out")
    result = attempt(settings, folder)
    assert result.returncode == 0, result.stderr
    return settings


@pytest.mark.parametrize(
    "when",
    ["while it is answered", "while the journal is written", ("round 1: training", 2), ("round 2: training", 1)],
)
def test_the_rest_of_a_killed_run_follows(settings, unbroken, tmp_path, when):
    assert attempt(settings, tmp_path, when).returncode == -signal.SIGKILL
    assert not settings.out.exists()
    resumed = attempt(settings, tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert files_of(settings.out) == files_of(unbroken.out)
    journals = [(one.work / "journal.jsonl").read_bytes() for one in (settings, unbroken)]
    assert journals[0] == journals[1]
