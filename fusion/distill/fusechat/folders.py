"""Checkpoint folders on this machine, and the result as one: weights in its dtype, record and model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from alignment.errors import ConfigError
from fusion.distill.checkpoint import (
    SHARD_BYTES,
    Checkpoint,
    copy_beside,
    read,
    shards,
    write_index,
    write_shard,
    written_at_once,
)
from fusion.distill.folders import FLOATS
from fusion.distill.fusechat.settings import Source
from fusion.distill.fusechat.shards import read_json
from fusion.distill.lineage import RECORD
from fusion.members.checkpoint import DTYPES


def local_folder(source: Source) -> Path:
    """The folder of a checkpoint, downloaded where it is a name of the hub."""
    if Path(source.source).is_dir():
        return Path(source.source)
    return Path(snapshot_download(source.source, revision=source.revision))


def clear_result(out: Path) -> None:
    """Remove the result of an earlier distillation.

    Raises:
        ConfigError: anything else is in its place.
    """
    if out.exists() and any(out.iterdir()):
        if not read_json(out / RECORD):
            raise ConfigError(f"{out} holds something that is no result of a distillation; name another folder.")
        shutil.rmtree(out)


def publish(merged: Path, out: Path, dtype: str, record: Mapping[str, Any], card: str) -> None:
    """Write the result: `merged` with its weights in `dtype`, `distillation.json` and a model card.

    Raises:
        ConfigError: `out` holds something already, or cannot be written.
    """
    checkpoint = Checkpoint.open(merged)
    groups = shards([checkpoint.tensors[name] for name in sorted(checkpoint.tensors)], SHARD_BYTES)
    with written_at_once(out) as folder:
        copy_beside(merged, folder)
        for file in ("stage.json", RECORD):
            (folder / file).unlink(missing_ok=True)
        files: dict[str, str] = {}
        size = 0
        for number, group in enumerate(groups, 1):
            tensors = {one.name: read(one) for one in group}
            cast = {
                one.name: tensors[one.name].to(DTYPES[dtype]) if one.dtype in FLOATS else tensors[one.name]
                for one in group
            }
            size += sum(tensor.nbytes for tensor in cast.values())
            files.update(dict.fromkeys(cast, write_shard(folder, cast, number, len(groups))))
        if len(groups) > 1:
            write_index(folder, files, size)
        config = {**checkpoint.config, "dtype": dtype}
        (folder / "config.json").write_text(
            json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
        for written in folder.iterdir():
            if written.is_file():
                written.chmod(0o644)
