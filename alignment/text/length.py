"""Lower bounds of a text's number of tokens, far cheaper than tokenising it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_letters
from typing import Any

from alignment.text.surfaces import SPACE, components

_LETTERS = ascii_letters.encode()
_NO_LETTERS = bytes(set(range(256)) - set(_LETTERS))


@dataclass(frozen=True, slots=True)
class Lengths:
    """The longest text that one token of a vocabulary stands for.

    Attributes:
        characters: of a text, 0 where that is not known: a normaliser may join characters.
        letters: ASCII letters, 0 where the vocabulary lacks one of them.
    """

    characters: int
    letters: int

    @classmethod
    def of(cls, surfaces: Sequence[bytes | None], pipeline: Mapping[str, Any]) -> Lengths:
        """Measure a vocabulary; `pipeline` is its backend's JSON."""
        known = {surface for surface in surfaces if surface}
        characters = letters = 0
        if all(bytes([letter]) in known for letter in _LETTERS):
            # Bytes that begin no character are none of a token's own.
            characters = _most(known, lambda surface: sum(byte & 0xC0 != 0x80 for byte in surface) or 1)
            letters = _most(known, lambda surface: len(_letters(surface)))
        unknown_are_joined = None in _byte_surfaces(known)
        joins = unknown_are_joined or any(not _keeps_length(step) for step in components(pipeline["normalizer"]))
        return cls(0 if joins else characters, letters)

    def least_tokens(self, text: str) -> int:
        """The least number of tokens that `text` can have."""
        bounds = [0]
        if self.characters:
            bounds.append(-(-len(text) // self.characters))
        if self.letters:
            data = text.encode(errors="replace")
            # Each character that is not ASCII may take one letter up when a normaliser composes them.
            letters = len(_letters(data)) - (0 if len(data) == len(text) else len(text) - len(_ascii(data)))
            bounds.append(-(-letters // self.letters))
        return max(bounds)


def _most(surfaces: set[bytes], count: Callable[[bytes], int]) -> int:
    """The largest count of a surface, which is at most its length."""
    most = 0
    for surface in sorted(surfaces, key=len, reverse=True):
        if len(surface) <= most:
            break
        most = max(most, count(surface))
    return most


def _letters(data: bytes) -> bytes:
    return data.translate(None, _NO_LETTERS)


def _ascii(data: bytes) -> bytes:
    return data.translate(None, bytes(range(0x80, 0x100)))


def _byte_surfaces(known: set[bytes]) -> list[bytes | None]:
    """Each byte that UTF-8 begins a character with, None for those that no token spells alone."""
    return [bytes([byte]) if bytes([byte]) in known else None for byte in (*range(0x80), *range(0xC2, 0xF4))]


def _keeps_length(step: Mapping[str, Any]) -> bool:
    """Return whether a normaliser never makes a text shorter."""
    if step["type"] == "Replace":
        return bool(step["pattern"] == {"String": " "} and step["content"] == SPACE)
    return step["type"] in ("Prepend", "ByteLevel")
