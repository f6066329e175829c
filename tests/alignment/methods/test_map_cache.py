"""Maps are learned once: over calls, processes, and whatever happens to their files."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alignment.errors import ConfigError
from alignment.methods.map_cache import MapCache, user_cache
from alignment.methods.origin import Origin, Side
from alignment.vocab_map import VocabMap

ORIGIN = Origin("mined", None, Side("ada", "a", (2,)), Side("ben", "b", (0,)), "0.1.0")


class Learner:
    """Learns a map with one weight, and counts."""

    def __init__(self, weight: float = 0.5) -> None:
        self.calls = 0
        self.weight = weight

    def __call__(self) -> VocabMap:
        self.calls += 1
        return VocabMap(np.zeros((1, 1)), np.full((1, 1), self.weight), 1)


def weight(map: VocabMap | None) -> float | None:
    return None if map is None else float(map.weights[0, 0])


def file_of(folder: Path) -> Path:
    [path] = folder.glob("*.safetensors")
    return path


def test_a_map_is_learned_once(tmp_path):
    learn = Learner()
    folder = tmp_path / "not" / "there" / "yet"
    cache = MapCache(folder)
    assert cache.find(ORIGIN) is None
    assert not folder.exists(), "looking leaves no traces"
    assert weight(cache.find_or_learn(ORIGIN, learn)) == 0.5
    assert weight(cache.find_or_learn(ORIGIN, learn)) == 0.5
    assert weight(MapCache(folder).find_or_learn(ORIGIN, learn)) == 0.5
    assert weight(MapCache(folder).find(ORIGIN)) == 0.5
    assert learn.calls == 1


def test_another_origin_is_another_map(tmp_path):
    learn = Learner()
    MapCache(tmp_path).find_or_learn(ORIGIN, learn)
    MapCache(tmp_path).find_or_learn(replace(ORIGIN, target=replace(ORIGIN.target, tokenizer="c")), learn)
    assert learn.calls == 2


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def swap(path: Path) -> None:
    """Another pair's map under this pair's name."""
    other = replace(ORIGIN, source=replace(ORIGIN.source, tokenizer="x"))
    folder = path.parent / "other"
    MapCache(folder).find_or_learn(other, Learner(0.125))
    file_of(folder).replace(path)


@pytest.mark.parametrize("damage", [truncate, empty, change, swap])
def test_a_damaged_map_is_learned_again_with_a_warning(tmp_path, caplog, damage):
    MapCache(tmp_path).find_or_learn(ORIGIN, Learner())
    damage(file_of(tmp_path))
    assert MapCache(tmp_path).find(ORIGIN) is None
    caplog.clear()
    assert weight(MapCache(tmp_path).find_or_learn(ORIGIN, Learner(0.25))) == 0.25
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert str(file_of(tmp_path)) in record.getMessage()
    assert weight(MapCache(tmp_path).find(ORIGIN)) == 0.25


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    learn = Learner()
    cache = MapCache(tmp_path / "file" / "maps")
    assert weight(cache.find_or_learn(ORIGIN, learn)) == 0.5
    assert "cannot be kept" in caplog.text
    assert weight(cache.find_or_learn(ORIGIN, learn)) == 0.5
    assert learn.calls == 1, "within the process it is known"


def test_a_full_disk_costs_a_warning(tmp_path, caplog, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert weight(MapCache(tmp_path).find_or_learn(ORIGIN, Learner())) == 0.5
    assert "No space left on device" in caplog.text
    assert not list(tmp_path.glob("*.safetensors"))
    assert not list(tmp_path.glob(".*.tmp"))


def test_without_a_folder_maps_last_as_long_as_the_cache():
    learn, cache = Learner(), MapCache(None)
    assert cache.find(ORIGIN) is None
    cache.find_or_learn(ORIGIN, learn)
    cache.find_or_learn(ORIGIN, learn)
    assert learn.calls == 1


def test_what_cannot_be_learned_leaves_nothing_and_can_be_tried_again(tmp_path):
    def refuse() -> VocabMap:
        raise ConfigError("Too few anchors.")

    with pytest.raises(ConfigError, match="Too few"):
        MapCache(tmp_path).find_or_learn(ORIGIN, refuse)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    assert weight(MapCache(tmp_path).find_or_learn(ORIGIN, Learner())) == 0.5


def learn_slowly(folder: Path, ready: object) -> None:
    """One of several processes that start at once; each call leaves a file behind."""

    def learn() -> VocabMap:
        (folder / f"learned-{os.getpid()}").touch()
        time.sleep(0.5)
        return Learner()()

    ready.wait()  # type: ignore[attr-defined]
    assert weight(MapCache(folder).find_or_learn(ORIGIN, learn)) == 0.5


def test_of_processes_that_start_at_once_one_learns(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Barrier(3)
    processes = [spawn.Process(target=learn_slowly, args=(tmp_path, ready)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(tmp_path.glob("learned-*"))) == 1
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def die_while_learning(folder: Path) -> None:
    MapCache(folder).find_or_learn(ORIGIN, lambda: os._exit(9))


def test_a_process_that_dies_while_it_learns_blocks_nobody(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=die_while_learning, args=(tmp_path,))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 9
    assert weight(MapCache(tmp_path).find_or_learn(ORIGIN, Learner())) == 0.5


def test_where_a_user_keeps_cached_files(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert user_cache({"XDG_CACHE_HOME": "/var/x"}) == Path("/var/x/tutti")
    assert user_cache({}) == Path("/home/ada/.cache/tutti")
    assert user_cache({"XDG_CACHE_HOME": "relative"}) == Path("/home/ada/.cache/tutti"), "as XDG says"
