"""A sparse matrix from one vocabulary to another, in the layout that a decoding round gathers from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors
from scipy.sparse import coo_array, csr_array

from alignment.errors import ConfigError
from alignment.files import replace_file

_FORMAT = "tutti.vocab_map"
_VERSION = "1"


@dataclass(frozen=True, slots=True, eq=False)
class VocabMap:
    """A sparse map of probability from source to target tokens (EVA's mapping matrix W, row by row, padded).

    Attributes:
        target_ids: [Vs, R] int32, target ids of each source id, -1 where a row has fewer than R.
        weights: [Vs, R] float32, finite and not negative, 0 on padding. A row need not sum to 1: what is missing
            is lost in projection.
        target_size: Vt, the number of target ids.
    """

    target_ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    target_size: int

    def __post_init__(self) -> None:
        ids = np.ascontiguousarray(self.target_ids, dtype=np.int32)
        weights = np.ascontiguousarray(self.weights, dtype=np.float32)
        if ids.ndim != 2 or ids.shape != weights.shape:
            raise ValueError(f"target_ids {ids.shape} and weights {weights.shape} must both be [Vs, R]")
        if ids.size and (ids.min() < -1 or ids.max() >= self.target_size):
            raise ValueError(f"target_ids must lie between -1 and {self.target_size - 1}")
        if not np.isfinite(weights).all() or (weights < 0).any():
            raise ValueError("weights must be finite and not negative")
        if (weights[ids < 0] != 0).any():
            raise ValueError("weights must be 0 where target_ids is -1")
        ids.flags.writeable = weights.flags.writeable = False
        object.__setattr__(self, "target_ids", ids)
        object.__setattr__(self, "weights", weights)

    @property
    def source_size(self) -> int:
        """Vs, the number of source ids."""
        return int(self.target_ids.shape[0])

    @property
    def coverage(self) -> float:
        """The share of source ids that reach any target id."""
        return float((self.weights > 0).any(axis=1).mean()) if self.source_size else 0.0

    def padded(self, rows: int) -> VocabMap:
        """The same map with empty rows added up to `rows`, for a model whose embeddings are padded beyond its
        tokenizer's ids."""
        missing = max(0, rows - self.source_size)
        ids = np.pad(self.target_ids, ((0, missing), (0, 0)), constant_values=-1)
        return VocabMap(ids, np.pad(self.weights, ((0, missing), (0, 0))), self.target_size)

    def sources_of(self, targets: NDArray[np.int64]) -> NDArray[np.int64]:
        """The source ids that reach any of these target ids (each once, within the map), ascending."""
        starts, sources = _by_target(self)
        return np.unique(np.concatenate([sources[starts[t] : starts[t + 1]] for t in targets] or [sources[:0]]))

    def to_scipy(self) -> csr_array[np.float32]:
        """The map as a matrix [Vs, Vt] float32; a target id twice in a row counts twice."""
        rows, slots = np.nonzero(self.target_ids >= 0)
        shape = (self.source_size, self.target_size)
        return csr_array(coo_array((self.weights[rows, slots], (rows, self.target_ids[rows, slots])), shape=shape))

    def save(self, path: str | Path, about: Mapping[str, str] = MappingProxyType({})) -> None:
        """Write the map as safetensors; readers see the old file or the new one, never a part.

        `about` is kept in the file's metadata, under a checksum with everything else. OSError where the file
        cannot be written.
        """
        path = Path(path)
        arrays = {"target_ids": self.target_ids, "weights": self.weights}
        metadata = {"format": _FORMAT, "version": _VERSION, "target_size": str(self.target_size), **about}
        metadata["checksum"] = _checksum(metadata, arrays)
        replace_file(path, to_safetensors(arrays, metadata))

    @classmethod
    def load(cls, path: str | Path) -> VocabMap:
        """Read a map written by `save`; ConfigError for anything else."""
        return read_map(path)[0]


@lru_cache(maxsize=64)
def _by_target(vocab_map: VocabMap) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The source ids of every target id, one after the other, and where each begins, [Vt + 1]."""
    rows, slots = np.nonzero(vocab_map.weights > 0)
    targets = vocab_map.target_ids[rows, slots]
    order = np.argsort(targets, kind="stable")
    counts = np.bincount(targets, minlength=vocab_map.target_size)
    return np.concatenate([[0], np.cumsum(counts)]), rows[order].astype(np.int64)


def read_map(path: str | Path) -> tuple[VocabMap, dict[str, str]]:
    """A map written by `VocabMap.save` and all of its metadata. Nothing in the file is run.

    Raises:
        ConfigError: there is no such file, it is no map, another version wrote it, or it was truncated or changed.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ConfigError(f"The file {path} is not a vocabulary map: give one that Tutti has written.")
            if metadata.get("version") != _VERSION:
                raise ConfigError(
                    f"The vocabulary map {path} has format version {metadata.get('version')}, and this "
                    f"Tutti reads version {_VERSION}: build the map again."
                )
            arrays = {name: file.get_tensor(name) for name in ("target_ids", "weights")}
        if metadata.pop("checksum", None) != _checksum(metadata, arrays):
            raise ValueError("its checksum does not match its content")
        return VocabMap(arrays["target_ids"], arrays["weights"], int(metadata["target_size"])), metadata
    except FileNotFoundError as error:
        raise ConfigError(f"The vocabulary map {path} does not exist: build it, or fix the path.") from error
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(f"The vocabulary map {path} is damaged ({error}): build it again.") from error


def _checksum(metadata: Mapping[str, str], arrays: Mapping[str, NDArray[Any]]) -> str:
    """The sha256 of metadata and arrays."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
