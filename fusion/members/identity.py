"""Identity of a checkpoint: a digest of its content, independent of its location."""

from __future__ import annotations

import hashlib

from alignment.errors import ConfigError
from alignment.files import local_file
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
        file = local_file(source, name, revision)
        if file is not None:
            with file.open("rb") as content:
                for i in range(_SAMPLES):
                    content.seek(i * size // _SAMPLES)
                    digest.update(content.read(_SAMPLE))
    config = local_file(source, "config.json", revision)
    if config is not None:
        digest.update(config.read_bytes())
    return digest.hexdigest()
