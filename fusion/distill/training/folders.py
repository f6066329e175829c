"""Checkpoint folders on this machine, and the result as one: weights in its dtype, record and model card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from alignment.errors import ConfigError
from fusion.distill.checkpoint import BESIDE, Checkpoint, Stored, copy_beside, read, write_weights, written_at_once
from fusion.distill.folders import FLOATS
from fusion.distill.training.settings import Source
from fusion.distill.training.shards import read_json, write_json
from fusion.members.devices import DTYPES
from fusion.members.lineage import RECORD


def local_folder(source: Source) -> Path:
    """The folder with what a checkpoint has beside its weights; downloaded where it is a name of the hub."""
    if Path(source.source).is_dir():
        return Path(source.source)
    return Path(snapshot_download(source.source, revision=source.revision, allow_patterns=list(BESIDE)))


def require_free(out: Path) -> None:
    """Raise ConfigError where `out` holds something that is no result of a distillation."""
    if out.exists() and any(out.iterdir()) and not read_json(out / RECORD):
        raise ConfigError(f"{out} holds something that is no result of a distillation; name another folder.")


def publish(
    merged: Path, out: Path, dtype: str, inputs: str, described: Callable[[], tuple[Mapping[str, Any], str]]
) -> None:
    """Write the result: `merged` with its weights in `dtype`, `distillation.json` and a model card.

    What was made of the same `inputs` stays; the result of another distillation goes. `described` returns record
    and card.

    Raises:
        ConfigError: `out` holds something else, or cannot be written.
    """
    require_free(out)
    if read_json(out / RECORD).get("inputs") == inputs:
        return
    record, card = described()
    checkpoint = Checkpoint.open(merged)

    def cast(stored: Stored) -> torch.Tensor:
        tensor = read(stored)
        return tensor.to(DTYPES[dtype]) if stored.dtype in FLOATS else tensor

    with written_at_once(out, replaces=True) as folder:
        copy_beside(merged, folder)
        for file in ("stage.json", RECORD):
            (folder / file).unlink(missing_ok=True)
        write_weights(folder, checkpoint.tensors.values(), cast)
        write_json(folder / "config.json", {**checkpoint.config, "dtype": dtype})
        write_json(folder / RECORD, record)
        (folder / "README.md").write_text(card, encoding="utf-8")
        for written in folder.iterdir():
            if written.is_file():
                written.chmod(0o644)
