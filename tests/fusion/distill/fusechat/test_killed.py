"""A run that was killed, at any moment, ends after a rerun with the same bits as one that was left alone."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from alignment.errors import ConfigError
from fusion.distill.fusechat.run import Run
from fusion.distill.fusechat.settings import FuseChat
from fusion.distill.training import shards, trainer
from fusion.distill.training.shards import shard_path
from tests.support.distillable import files_of

# Each attempt is a process of its own, forked from one that has imported the libraries and done nothing else.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


def kill(*_: object, **__: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def run(settings: FuseChat, when: object, limit: int, said: Path) -> None:
    """All stages, killed at the moment `when`; files may have `limit` bytes at most, if it is not 0."""

    def progress(what: str, done: int, total: int | None) -> None:
        if (what, done) == when:
            kill()

    if when == "while a shard is written":
        shards.os.fsync = kill
    if when == "while a checkpoint is written":
        saved = trainer.FusionTrainer._save_optimizer_and_scheduler

        def save(self: trainer.FusionTrainer, folder: str) -> None:
            saved(self, folder)
            if self.state.global_step == 4:
                kill()

        trainer.FusionTrainer._save_optimizer_and_scheduler = save
    if when == "while checkpoints are rotated":
        marked = trainer.mark_complete
        trainer.mark_complete = lambda folder: kill() if folder.name == "checkpoint-4" else marked(folder)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        stages = Run(settings, progress)
        stages.represent()
        stages.align()
        stages.train()
        stages.merge()
    except ConfigError as error:
        os.write(os.open(said, os.O_WRONLY | os.O_CREAT), str(error).encode())
        os._exit(2)


@dataclass(frozen=True)
class Attempt:
    returncode: int | None
    error: str


def attempt(settings: FuseChat, folder: Path, when: object = None, limit: int = 0) -> Attempt:
    said = folder / "said"
    said.unlink(missing_ok=True)
    process = PROCESSES.Process(target=run, args=(settings, when, limit, said))
    process.start()
    process.join()
    return Attempt(process.exitcode, said.read_text() if said.exists() else "")


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
    assert attempt(site, tmp_path).returncode == 0
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
    assert first.returncode == 2
    assert "cannot be written" in first.error
    assert "make room" in first.error
    assert f"{site.work}/{place}" in first.error
    assert len(first.error.splitlines()) == 1
    assert attempt(site, tmp_path).returncode == 0
    assert_same_result(done, site)


def test_a_disk_that_is_full_when_weights_are_written_is_one_sentence(
    done: Run, site: FuseChat, tmp_path: Path
) -> None:
    """The first file of a checkpoint; what comes before the first training is there already."""
    for stage in ("represent", "align", "train/start"):
        shutil.copytree(done.settings.work / stage, site.work / stage)
    first = attempt(site, tmp_path, limit=60_000)
    assert first.returncode == 2
    assert f"{site.work}/train" in first.error
    assert "make room" in first.error
    assert len(first.error.splitlines()) == 1
    assert attempt(site, tmp_path).returncode == 0
    assert_same_result(done, site)


def test_a_half_written_shard_is_not_taken_for_whole(done: Run, site: FuseChat, tmp_path: Path) -> None:
    folder = site.work / "represent" / "base"
    folder.mkdir(parents=True)
    whole = shard_path(done.settings.work / "represent" / "base", 0).read_bytes()
    shard_path(folder, 0).write_bytes(whole[: len(whole) // 2])
    assert attempt(site, tmp_path).returncode == 0
    assert_same_result(done, site)
