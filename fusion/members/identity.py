"""Identity of a checkpoint: a digest of its content, independent of its location."""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from alignment.errors import ConfigError
from fusion.members.checkpoint import weight_files

_SAMPLES = 64
_SAMPLE = 4096


def content_digest(source: str, *, revision: str | None = None) -> str:
    """A digest of a checkpoint's configuration and weights; equal for copies of it.

    Weights enter by their files' names, sizes and samples of their bytes, because reading gigabytes would take too
    long. Files that are not on this machine enter by name and size alone, and where there are no safetensors the
    name of the checkpoint is used.
    """
    digest = hashlib.sha256()
    try:
        weights = weight_files(source, revision=revision)
    except ConfigError:
        digest.update(f"{source}@{revision} ".encode())
        weights = {}
    for name, size in sorted(weights.items()):
        digest.update(f"{name} {size} ".encode())
        file = _here(source, name, revision)
        if file is not None:
            with file.open("rb") as content:
                for i in range(_SAMPLES):
                    content.seek(i * size // _SAMPLES)
                    digest.update(content.read(_SAMPLE))
    config = _here(source, "config.json", revision)
    if config is not None and config.is_file():
        digest.update(config.read_bytes())
    return digest.hexdigest()


def _here(source: str, name: str, revision: str | None) -> Path | None:
    """A file of the checkpoint, if it is on this machine."""
    if Path(source).is_dir():
        return Path(source, name)
    cached = try_to_load_from_cache(source, name, revision=revision)
    return Path(cached) if isinstance(cached, str) else None
