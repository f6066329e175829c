"""Checkpoint folders: tensors of safetensors files read one at a time, and a folder written in one step.

A folder holds `model.safetensors`, or shards beside `model.safetensors.index.json`, and `config.json`. Nothing
else is ever read as weights.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from alignment.errors import ConfigError
from alignment.files import INDEX, SINGLE, open_tensors

HEAD = "lm_head.weight"
EMBEDDINGS = "embed_tokens.weight"

BESIDE = (
    "*.json",
    "*.jinja",
    "*.model",
    "*.txt",
    "LICENSE*",
    "NOTICE*",
    "chat_templates",
    "additional_chat_templates",
)
"""What is copied with the weights: configuration, generation settings, tokenizer, chat templates, terms."""

SHARD_BYTES = 2 << 30
"""A shard is closed before it would grow beyond this; a larger tensor has a shard of its own."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor in a file."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder; their data stay in the files.

    Attributes:
        folder: with config.json.
        config: what it holds.
        tensors: by name. Without the output table where the configuration says that it is the input table.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Stored]

    @classmethod
    def open(cls, folder: str | Path) -> Checkpoint:
        """Read the headers of a folder's files.

        Raises:
            ConfigError: the folder, its configuration or a file is missing or unreadable, there are no safetensors
                files, or the weights are quantised.
        """
        folder = Path(folder)
        config = _json(folder / "config.json")
        if config.get("quantization_config"):
            raise ConfigError(f"{folder} is quantised, and merging needs the original weights: give these.")
        tensors: dict[str, Stored] = {}
        for file in _weight_files(folder):
            tensors.update({stored.name: stored for stored in _headers(file)})
        _check_index(folder, tensors)
        table = embeddings(tensors)
        if config.get("tie_word_embeddings") and table:
            tensors.pop(HEAD, None)
        return cls(folder, config, tensors)

    def find(self, name: str) -> Stored | None:
        """The tensor of that name; a tied model's input table is its output table as well."""
        found = self.tensors.get(name)
        if found is None and name == HEAD and self.config.get("tie_word_embeddings"):
            found = self.tensors.get(embeddings(self.tensors) or "")
        return found


def embeddings(tensors: dict[str, Stored]) -> str | None:
    """Name of the input table, where there is exactly one."""
    names = [name for name in tensors if name.endswith(EMBEDDINGS)]
    return names[0] if len(names) == 1 else None


def read(stored: Stored, shape: tuple[int, ...] | None = None) -> torch.Tensor:
    """A tensor, or the part of it from the first entry of each axis on that has `shape`."""
    with open_tensors(stored.file) as file:
        if shape is None or shape == stored.shape:
            tensor: torch.Tensor = file.get_tensor(stored.name)
        else:
            tensor = file.get_slice(stored.name)[tuple(slice(0, size) for size in shape)]
    return tensor


def write_weights(
    folder: Path, tensors: Iterable[Stored], made: Callable[[Stored], torch.Tensor], shard_bytes: int = SHARD_BYTES
) -> None:
    """Write what `made` makes of each tensor, in order of name and in files of at most so many bytes of the old.

    Raises:
        ConfigError: a file that cannot be written.
    """
    groups = _shards(sorted(tensors, key=lambda stored: stored.name), shard_bytes)
    files: dict[str, str] = {}
    size = 0
    for number, group in enumerate(groups, 1):
        finished = {stored.name: made(stored) for stored in group}
        size += sum(tensor.nbytes for tensor in finished.values())
        name = SINGLE if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        files |= dict.fromkeys(finished, name)
        try:
            save_file(finished, folder / name, metadata={"format": "pt"})
        except SafetensorError as error:
            raise ConfigError(f"{folder / name} cannot be written: {error}.") from error
    if len(groups) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": files}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(tensors: list[Stored], limit: int) -> list[list[Stored]]:
    groups: list[list[Stored]] = [[]]
    size = 0
    for stored in tensors:
        if groups[-1] and size + stored.bytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(stored)
        size += stored.bytes
    return groups


def copy_beside(source: Path, target: Path) -> None:
    """Copy what a model needs beside its weights; links are followed, programs are never copied."""
    for entry in sorted(source.iterdir()):
        if entry.name.endswith(".index.json") or not any(fnmatch(entry.name, pattern) for pattern in BESIDE):
            continue
        if entry.is_dir():
            shutil.copytree(
                entry, target / entry.name, ignore=lambda _, names: [n for n in names if ".jinja" not in n]
            )
        else:
            shutil.copyfile(entry, target / entry.name)


@contextmanager
def written_at_once(folder: Path, *, replaces: bool = False) -> Iterator[Path]:
    """A folder beside `folder` to write into, which takes its name when the block ends without an error.

    What an earlier run left behind is removed first, so a run that was killed is simply started again.

    Args:
        replaces: whether a folder that exists is removed, once all is written.

    Raises:
        ConfigError: `folder` exists and holds something, or its place cannot be written to.
    """
    if not replaces and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already: name an output folder that is new or empty.")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir()
        try:
            yield unfinished
            for file in unfinished.rglob("*"):
                if file.is_file():
                    _to_disk(file)
            if replaces and folder.exists():
                shutil.rmtree(folder)
            os.replace(unfinished, folder)
            _to_disk(folder.parent)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror or error}.") from error


def _to_disk(path: Path) -> None:
    """A name that is on the disk before its content would be a broken checkpoint after a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _json(path: Path) -> dict[str, Any]:
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is not a folder: give that of a checkpoint.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path.parent} has no {path.name}, so it is no checkpoint: give the folder of one."
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON ({error}): save the model again.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a JSON object: save the model again.")
    return content


def _weight_files(folder: Path) -> list[Path]:
    if not (folder / INDEX).exists():
        if (folder / SINGLE).exists():
            return [folder / SINGLE]
        raise ConfigError(f"{folder} has no {SINGLE} or {INDEX}: save the model as safetensors first.")
    names = _json(folder / INDEX).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) and Path(n).name == n for n in names.values()):
        raise ConfigError(
            f"{folder / INDEX} has no weight_map of file names in its own folder: save the model again."
        )
    return [folder / name for name in sorted(set(names.values()))]


def _check_index(folder: Path, tensors: dict[str, Stored]) -> None:
    if (folder / INDEX).exists():
        missing = _json(folder / INDEX)["weight_map"].keys() - tensors.keys()
        if missing:
            raise ConfigError(
                f"{folder} lacks {len(missing)} of the tensors its index lists, such as {min(missing)}: "
                "copy it again."
            )


def _headers(path: Path) -> Iterator[Stored]:
    with open_tensors(path) as file:
        for name in file.keys():  # noqa: SIM118, a safetensors file is no mapping
            view = file.get_slice(name)
            shape = tuple(view.get_shape())
            size = int(torch.Size(shape).numel())
            # The names of safetensors' types end in their bits: F32, BF16, F8_E4M3 (rounded up by the second).
            bits = int("".join(filter(str.isdigit, view.get_dtype().split("_")[0])) or 8)
            yield Stored(path, name, shape, view.get_dtype(), size * bits // 8)
