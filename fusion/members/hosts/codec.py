"""Codec: messages as bytes, a short header that describes the content, then the arrays as they lie in memory.

A message is one of `messages.WIRE`, or a list of them. Its header is JSON: the class's name and its fields in
order. Arrays and long lists of ids stand outside it, raw and aligned. A list of messages of one kind goes field
by field, so that the arrays of a whole batch are one. Nothing is pickled: what arrives can be wrong, but it cannot
run code.

    [size: u32] [header size: u32] [header] [padding] [array] [padding] [array] [padding] ...
"""

from __future__ import annotations

import hashlib
import json
import struct
from contextlib import suppress
from dataclasses import fields
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.members.hosts.messages import WIRE

SIZES = struct.Struct("<II")
ALIGNMENT = 8
# What JSON has no word for is an object with one of these keys. (A dict's keys need not be text.)
MESSAGE, MESSAGES, ARRAY, STACK = "message", "messages", "array", "stack"
IDS, TUPLE, DICT, BYTES = "ids", "tuple", "dict", "bytes"
IDS_IN_HEADER = 16  # ids that are as well off in the header


def encode(message: Any) -> bytes:
    """A message as one frame.

    Raises:
        TypeError: there is something in it that no message may hold.
    """
    arrays: list[NDArray[Any]] = []
    header = json.dumps(_pack(message, arrays), separators=(",", ":")).encode()
    parts = [header, _padding(SIZES.size + len(header))]
    for array in arrays:
        parts += [array.tobytes(), _padding(array.nbytes)]
    body = b"".join(parts)
    return SIZES.pack(SIZES.size + len(body), len(header)) + body


def frame_size(data: bytearray) -> int | None:
    """The size of the frame that `data` begins with; None while too little is there to tell."""
    return int(SIZES.unpack_from(data)[0]) if len(data) >= SIZES.size else None


def decode(frame: bytes) -> Any:
    """The message of a frame. Its arrays are read-only views of the frame."""
    end = SIZES.size + SIZES.unpack_from(frame)[1]
    header = json.loads(frame[SIZES.size : end])
    return _unpack(header, _Arrays(frame, end + len(_padding(end))))


class _Arrays:
    """Gives out a frame's arrays in the order in which they were packed."""

    def __init__(self, frame: bytes, at: int) -> None:
        self.frame = frame
        self.at = at

    def take(self, dtype: str, shape: list[int]) -> NDArray[Any]:
        array: NDArray[Any] = np.ndarray(shape, dtype, self.frame, self.at)
        self.at += array.nbytes + len(_padding(array.nbytes))
        return array


def _pack(value: Any, arrays: list[NDArray[Any]]) -> Any:
    """`value` in the words of JSON; what lies outside the header is added to `arrays`."""
    if value is None or isinstance(value, int | float | str):
        return value
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {ARRAY: [value.dtype.str, value.shape]}
    name = type(value).__name__
    if name in _fields():
        return {MESSAGE: [name, *(_pack(getattr(value, field), arrays) for field in _fields()[name])]}
    if isinstance(value, list | range):
        return _pack_list(list(value), arrays)
    if isinstance(value, tuple):
        return {TUPLE: [_pack(item, arrays) for item in value]}
    if isinstance(value, dict):
        return {DICT: [[_pack(key, arrays), _pack(item, arrays)] for key, item in value.items()]}
    if isinstance(value, bytes):
        arrays.append(np.frombuffer(value, np.uint8))
        return {BYTES: len(value)}
    raise TypeError(f"no message can hold a {type(value).__name__}")


def _pack_list(values: list[Any], arrays: list[NDArray[Any]]) -> Any:
    kinds = set(map(type, values))
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is int:
        if len(values) > IDS_IN_HEADER:
            with suppress(OverflowError):  # seeds may be larger, and stay in the header
                arrays.append(np.array(values, dtype=np.int64))
                return {IDS: len(values)}
        return values
    if kind is np.ndarray and values[0].ndim and len({(array.dtype, array.shape) for array in values}) == 1:
        arrays.append(np.concatenate(values))  # as `np.stack`, in a fraction of the time
        return {STACK: [arrays[-1].dtype.str, [len(values), *values[0].shape]]}
    if kind is not None and (names := _fields().get(kind.__name__)):
        columns = ([getattr(value, name) for value in values] for name in names)
        return {MESSAGES: [kind.__name__, *(_pack_list(column, arrays) for column in columns)]}
    return [_pack(value, arrays) for value in values]


def _unpack(value: Any, arrays: _Arrays) -> Any:
    """The inverse of `_pack`."""
    if isinstance(value, list):
        return [_unpack(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == ARRAY:
        return arrays.take(*content)
    if kind == MESSAGE:
        return _classes()[content[0]](*(_unpack(item, arrays) for item in content[1:]))
    if kind == MESSAGES:
        return list(map(_classes()[content[0]], *(_unpack(column, arrays) for column in content[1:])))
    if kind == STACK:
        return list(arrays.take(*content))
    if kind == IDS:
        return arrays.take("<i8", [content]).tolist()
    if kind == TUPLE:
        return tuple(_unpack(item, arrays) for item in content)
    if kind == DICT:
        return {_unpack(key, arrays): _unpack(item, arrays) for key, item in content}
    return arrays.take("|u1", [content]).tobytes()


@cache
def _classes() -> dict[str, type]:
    """The messages by name."""
    return {kind.__name__: kind for kind in WIRE}


@cache
def dialect() -> str:
    """A digest of the messages and their fields: both ends must have the same."""
    return hashlib.sha256(json.dumps(_fields()).encode()).hexdigest()[:16]


@cache
def _fields() -> dict[str, tuple[str, ...]]:
    return {name: tuple(field.name for field in fields(kind)) for name, kind in _classes().items()}


def _padding(size: int) -> bytes:
    return bytes(-size % ALIGNMENT)
