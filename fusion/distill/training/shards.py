"""Shards: arrays in safetensors files that are whole or not there, and know what they were made from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from alignment.errors import ConfigError
from alignment.files import writing
from fusion.distill.training.settings import Progress

Arrays = dict[str, NDArray[Any]]


def shard_path(folder: Path, number: int) -> Path:
    """The path of shard `number` of a stage."""
    return folder / f"shard-{number:05d}.safetensors"


@dataclass(frozen=True)
class Stage:
    """A stage whose files are shards: how many, made from what, and where; `progress` hears of each."""

    count: int
    inputs: str
    folder: Path
    progress: Progress

    def each(self, make: Callable[[int], Arrays]) -> Iterator[tuple[int, Arrays]]:
        """Every shard by its number; those that are missing or made from something else are made and written."""
        for number in range(self.count):
            path = shard_path(self.folder, number)
            stored = read_shard(path, self.inputs)
            if stored is None:
                stored = make(number)
                write_shard(path, stored, self.inputs)
            yield number, stored
            self.progress(number + 1, self.count)


def write_shard(path: Path, arrays: Arrays, inputs: str) -> None:
    """Write a shard; it appears under its name complete or not at all.

    Args:
        path: its place.
        arrays: what it holds.
        inputs: a digest of what it was made from, asked for when it is read.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
    # One entry: the order of several is not fixed, and a rerun is to write the same bytes.
    about = json.dumps({"inputs": inputs, "content": _digest(arrays)})
    write_file(path, save(arrays, metadata={"tutti": about}))


def write_file(path: Path, content: bytes) -> None:
    """Replace a file in one step, on the disk before it has its name.

    Raises:
        ConfigError: the disk is full or the place cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.unfinished")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def read_shard(path: Path, inputs: str) -> Arrays | None:
    """The arrays of a shard; None where it is missing, damaged, or made from something else."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("tutti", "{}"))
            if about.get("inputs") != inputs:
                return None
            arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (OSError, SafetensorError, ValueError):
        return None
    return arrays if about.get("content") == _digest(arrays) else None


def require_shard(path: Path, inputs: str) -> Arrays:
    """As `read_shard`.

    Raises:
        ConfigError: there is no such shard.
    """
    arrays = read_shard(path, inputs)
    if arrays is None:
        raise ConfigError(
            f"{path} is missing, damaged or made from other settings; run the stages before this one again."
        )
    return arrays


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step."""
    write_file(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()
