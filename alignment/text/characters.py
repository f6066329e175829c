"""Characters: text as it comes in bytes, and the beginnings of characters that it may end with."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence

from alignment.text.continuation import Continuation

_AT_ONCE = 256  # characters that are spelled in one batch


def pieces_of(data: bytes) -> tuple[list[str | bytes], bytes]:
    """Split bytes into text (str), bytes that are none (bytes), and the beginning of a character at the end."""
    pieces: list[str | bytes] = []
    while True:
        try:
            text, length = codecs.utf_8_decode(data, "strict", False)
        except UnicodeDecodeError as error:
            text, length = data[: error.start].decode(), error.end
            if text:
                pieces.append(text)
            pieces.append(data[error.start : length])
            data = data[length:]
            continue
        if text:
            pieces.append(text)
        pending = data[length:]
        if len(pending) > 1 and pending[0] == 0xED and pending[1] >= 0xA0:
            # Half a surrogate pair: no character, though the decoder would wait for its third byte.
            pieces.append(pending)
            pending = b""
        return pieces, pending


def beginning_at_the_end(data: bytes) -> bytes:
    """The beginning of a character that `data` ends with, b"" where it ends otherwise."""
    if not data or data[-1] < 0x80:  # nearly always
        return b""
    for size in range(1, min(3, len(data)) + 1):
        if data[-size] >= 0xC0:  # where a character begins, whatever is before
            return pieces_of(bytes(data[-size:]))[1]
        if data[-size] < 0x80:
            return b""
    return b""


def is_whole(data: bytes) -> bool:
    """Return whether bytes are whole characters."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class Beginnings:
    """Which tokens a tokenizer spells beginnings of characters in, as parts of its spelling of a whole one."""

    def __init__(self, continuation: Continuation) -> None:
        self._continuation = continuation
        self._known: dict[tuple[bytes, tuple[int, ...]], bool] = {}

    def are_canonical(self, ids: Sequence[int], beginning: bytes) -> bool:
        """Whether the spelling of some character that begins with `beginning` begins with `ids`."""
        key = beginning, tuple(ids)
        if key not in self._known:
            self._known[key] = any(
                tuple(spelled[: len(ids)]) == key[1] and len(spelled) > len(ids)
                for batch in _batches(_characters(beginning))
                for spelled in self._continuation.encode_batch(batch)
            )
        return self._known[key]


def _characters(beginning: bytes) -> Iterator[str]:
    """The characters that begin with `beginning`; of those of four bytes after one of them a part."""
    lead = beginning[0]
    length = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    tails: list[bytes] = [beginning]
    for place in range(len(beginning), length):
        few = length == 4 and len(beginning) == 1 and place == 3
        following = (0x80, 0x9F, 0xBF) if few else range(0x80, 0xC0)
        tails = [tail + bytes([byte]) for tail in tails for byte in following]
    for tail in tails:
        try:
            yield tail.decode()
        except UnicodeDecodeError:
            continue


def _batches(characters: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for character in characters:
        batch.append(character)
        if len(batch) == _AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
