"""Files: those that appear whole or not at all, and those of checkpoints."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from alignment.errors import ConfigError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""A checkpoint's weights in one file, and what names the files that they are in otherwise."""


def replace_file(path: Path, content: bytes) -> None:
    """Write a file that has its name only when it is whole. OSError where it cannot be written."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what can go wrong while `path` is written into one sentence."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"{path} cannot be written: {reason}; make room there, or name another folder, and run the same again."
        ) from error


@contextmanager
def open_tensors(file: Path) -> Iterator[Any]:
    """An open safetensors file. Raises ConfigError where it is missing, or damaged in what is read of it."""
    try:
        with safe_open(file, framework="pt") as content:
            yield content
    except (OSError, SafetensorError) as error:
        reason = f"is damaged ({error})" if file.exists() else "is missing"
        raise ConfigError(f"{file} {reason}; copy it again.") from error


def local_file(source: str, name: str, revision: str | None) -> Path | None:
    """A file of the checkpoint that lies on this machine by now; None where it has none."""
    folder = Path(source)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source, name, revision=revision)
    return Path(cached) if isinstance(cached, str) else None
