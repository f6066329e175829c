"""A run killed with SIGKILL, while it is answered or writes its journal, ends after a rerun as one left alone.

The training is FuseChat's, whose own tests kill it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fusion.distill.bohdi import journal
from fusion.distill.bohdi import run as running
from fusion.distill.bohdi.run import Run
from fusion.distill.bohdi.settings import Bohdi
from tests.support.distillable import files_of
from tests.support.scripted_voices import ScriptedVoices, opening

# Each run is a process of its own, forked from one that has imported the libraries and done nothing else.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


def die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


class DyingVoices(ScriptedVoices):
    """They take the process with them in the middle of their third batch of answers."""

    def ask(self, requests):
        if len(self.asked) > 30 and requests and requests[0].schema is None:
            die()
        return super().ask(requests)


def cut_and_die(path: Path, file: int) -> None:
    """A sync that never comes: half of what was to be written is on the disk, and the process is gone."""
    size = path.stat().st_size
    if size > 2000:
        os.truncate(path, size - 150)
        die()


def run(settings: Bohdi, voices: type[ScriptedVoices], fsync: Callable[[int], None]) -> None:
    running.open_voices = opening(voices())
    journal.os.fsync = fsync
    Run(settings).run()


def killed(settings: Bohdi, voices: type[ScriptedVoices], *, fsync: Callable[[int], None] = os.fsync) -> bool:
    """Run in a process of its own; whether it was killed."""
    process = PROCESSES.Process(target=run, args=(settings, voices, fsync))
    process.start()
    process.join()
    return process.exitcode == -signal.SIGKILL


def test_a_run_killed_again_and_again_ends_as_one_that_was_left_alone(settings, tmp_path, monkeypatch):
    longer = replace(settings, rounds=1, explore=replace(settings.explore, questions=16))
    monkeypatch.setattr(running, "open_voices", opening(ScriptedVoices()))
    alone = replace(longer, work=tmp_path / "alone", out=tmp_path / "alone-out")
    path = longer.work / "journal.jsonl"
    assert killed(longer, DyingVoices)
    assert path.exists()
    assert killed(longer, ScriptedVoices, fsync=partial(cut_and_die, path))
    assert not path.read_bytes().endswith(b"\n")
    Run(longer).run()
    Run(alone).run()
    assert files_of(longer.out) == files_of(alone.out)
    assert path.read_bytes() == (alone.work / "journal.jsonl").read_bytes()
