"""A run killed with SIGKILL, while it gathers, writes its journal or trains, ends the same after a rerun."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from dataclasses import replace

from fusion.distill.bohdi import run as running
from fusion.distill.bohdi.run import Run
from tests.support.distillable import files_of
from tests.support.scripted_voices import ScriptedVoices, opening

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


WHEN = ("while it is answered", "while the journal is written", ("round 2: training", 1))


def test_a_run_killed_again_and_again_ends_as_one_that_was_left_alone(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "open_voices", opening(ScriptedVoices()))
    alone = replace(settings, work=tmp_path / "alone", out=tmp_path / "alone-out")
    Run(alone).run()
    given = tmp_path / "given.pickle"
    for when in WHEN:
        given.write_bytes(pickle.dumps((settings, when)))
        killed = subprocess.run(
            [sys.executable, "-c", PROGRAM, given], capture_output=True, text=True, check=False
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not settings.out.exists()
    Run(settings).run()
    assert files_of(settings.out) == files_of(alone.out)
    journals = [(one.work / "journal.jsonl").read_bytes() for one in (settings, alone)]
    assert journals[0] == journals[1]
