"""A run that was killed, at any moment, ends after a rerun with the same bits as one that was left alone."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fusion.distill.fusechat.run import Run
from fusion.distill.fusechat.settings import FuseChat
from fusion.distill.fusechat.shards import shard_path
from tests.support.distillable import files_of

PROGRAM = """
import os, pickle, resource, signal, sys
from pathlib import Path
from fusion.distill.fusechat import shards, trainer
from fusion.distill.fusechat.run import Run
from alignment.errors import ConfigError

settings, when, limit = pickle.loads(Path(sys.argv[1]).read_bytes())
kill = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)

def progress(what, done, total):
    if (what, done) == when:
        kill()

if when == "while a shard is written":
    shards.os.fsync = kill
if when == "while a checkpoint is written":
    saved = trainer.FusionTrainer._save_optimizer_and_scheduler
    def save(self, folder):
        saved(self, folder)
        if self.state.global_step == 4:
            kill()
    trainer.FusionTrainer._save_optimizer_and_scheduler = save
if when == "while checkpoints are rotated":
    marked = trainer.mark_complete
    trainer.mark_complete = lambda folder: kill() if folder.name == "checkpoint-4" else marked(folder)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
run = Run(settings, progress)
try:
    run.represent(); run.align(); run.train(); run.merge()
except ConfigError as error:
    print(error)
    sys.exit(2)
"""


def attempt(
    settings: FuseChat, folder: Path, when: object = None, limit: int = 0
) -> subprocess.CompletedProcess[str]:
    given = folder / "given.pickle"
    given.write_bytes(pickle.dumps((settings, when, limit)))
    return subprocess.run([sys.executable, "-c", PROGRAM, given], capture_output=True, text=True, check=False)


def assert_same_result(done: Run, site: FuseChat) -> None:
    assert files_of(site.out) == files_of(done.settings.out)
    for stage in ("represent", "align", "train", "merge"):
        assert files_of(site.work / stage) == files_of(done.settings.work / stage)


@pytest.mark.parametrize(
    "when",
    [
        ("represent ben", 10),
        "while a shard is written",
        ("warp eve", 1),
        ("align ben", 1),
        ("train ben", 3),
        ("train ben", 6),
        "while a checkpoint is written",
        "while checkpoints are rotated",
        ("merge by sce", 9),
    ],
    ids=str,
)
def test_a_killed_run_is_gone_on_with_to_the_same_bits(
    done: Run, site: FuseChat, tmp_path: Path, when: object
) -> None:
    assert attempt(site, tmp_path, when).returncode == -signal.SIGKILL
    assert not site.out.exists()
    second = attempt(site, tmp_path)
    assert second.returncode == 0, second.stderr
    assert_same_result(done, site)


def test_a_run_that_was_killed_again_and_again_ends_the_same(done: Run, site: FuseChat, tmp_path: Path) -> None:
    for step in range(1, 7):
        attempt(site, tmp_path, ("train ben", step))
    assert attempt(site, tmp_path).returncode == 0
    assert_same_result(done, site)


@pytest.mark.parametrize(("limit", "place"), [(4_000, "represent"), (90_000, "train")])
def test_a_full_disk_is_one_sentence_and_nothing_half_written_stays(
    done: Run, site: FuseChat, tmp_path: Path, limit: int, place: str
) -> None:
    first = attempt(site, tmp_path, limit=limit)
    assert first.returncode == 2, first.stderr
    assert "cannot be written" in first.stdout
    assert "make room" in first.stdout
    assert f"{site.work}/{place}" in first.stdout
    assert len(first.stdout.strip().splitlines()) == 1
    assert attempt(site, tmp_path).returncode == 0
    assert_same_result(done, site)


def test_a_half_written_shard_is_not_taken_for_whole(done: Run, site: FuseChat, tmp_path: Path) -> None:
    folder = site.work / "represent" / "base"
    folder.mkdir(parents=True)
    whole = shard_path(done.settings.work / "represent" / "base", 0).read_bytes()
    shard_path(folder, 0).write_bytes(whole[: len(whole) // 2])
    assert attempt(site, tmp_path).returncode == 0
    assert_same_result(done, site)
