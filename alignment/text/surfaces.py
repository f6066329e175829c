"""Surfaces: the bytes that each token id stands for.

Tokenizers write bytes in one of two ways. A *byte-level* BPE (GPT-2 and everything converted from tiktoken)
maps each of the 256 bytes onto a printable character and works on those characters. A *SentencePiece* style
vocabulary works on characters, writes a space as U+2581, and may have 256 tokens `<0xXX>` for the bytes of
characters it does not know. Which of the two a tokenizer is follows from its pipeline, never from its name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import AddedToken

from alignment.errors import ConfigError

SPACE = "▁"
Kind = Literal["byte_level", "sentencepiece"]
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def fingerprint_of(pipeline: dict[str, Any]) -> str:
    """sha256 over what decides ids <-> text in a tokenizer's pipeline."""
    parts = {key: pipeline.get(key) for key in ("model", "normalizer", "pre_tokenizer", "decoder", "added_tokens")}
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the rest for U+0100 onwards in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = (byte for byte in range(256) if byte not in set(printable))
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


BYTE_OF_CHARACTER = _byte_alphabet()
CHARACTER_OF_BYTE = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}
_TABLE = {ord(character): byte for character, byte in BYTE_OF_CHARACTER.items()}
_ALPHABET = re.compile("[" + re.escape("".join(BYTE_OF_CHARACTER)) + "]*")


@dataclass(frozen=True, slots=True)
class Surfaces:
    """The surfaces of one vocabulary.

    `of[id]` is the bytes an id stands for inside running text, None for special tokens and unused ids.
    `byte_ids[byte]` is the id that stands for this single byte and nothing else, None where there is none.
    """

    kind: Kind
    of: list[bytes | None]
    byte_ids: list[int | None]


def components(part: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder in order, sequences flattened."""
    if part is None:
        return
    inner = part.get("normalizers") or part.get("pretokenizers") or part.get("decoders")
    if part.get("type") == "Sequence":
        for step in inner or ():
            yield from components(step)
    else:
        yield part


def kind_of(pipeline: Mapping[str, Any], name: str) -> Kind:
    """Tell from a backend's JSON how its vocabulary writes bytes; ConfigError for any other kind."""
    model = pipeline["model"]
    if model["type"] not in ("BPE", "Unigram"):
        raise ConfigError(
            f"The tokenizer of {name} is a {model['type']} tokenizer, which cannot be fused: only byte-level BPE "
            "and SentencePiece-style vocabularies (BPE or Unigram) are supported."
        )
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ConfigError(
            f"The tokenizer of {name} marks word pieces with a prefix or suffix and does not keep spaces, so it "
            "cannot be fused: use a byte-level BPE or a SentencePiece-style vocabulary."
        )
    stages = ("normalizer", "pre_tokenizer", "decoder")
    steps = [step for stage in stages for step in components(pipeline.get(stage))]
    if any(step["type"] == "ByteLevel" for step in steps):
        return "byte_level"
    if any(step["type"] == "Metaspace" or SPACE in _texts(step) for step in steps):
        return "sentencepiece"
    raise ConfigError(
        f"The tokenizer of {name} is neither a byte-level BPE nor a SentencePiece-style vocabulary, so it is not "
        "known which bytes its tokens stand for, and it cannot be fused."
    )


def _texts(step: Mapping[str, Any]) -> str:
    pattern = step.get("pattern") or {}
    return "".join([step.get("prepend", ""), step.get("content", "") or "", pattern.get("String", "")])


def surfaces_of(
    pipeline: Mapping[str, Any],
    kind: Kind,
    vocabulary: Mapping[str, int],
    added: Mapping[int, AddedToken],
    special_ids: frozenset[int],
) -> Surfaces:
    """Compute the surface of every id of `vocabulary` (added tokens included)."""
    of: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    byte_ids: list[int | None] = [None] * 256
    fallback = kind == "sentencepiece" and bool(pipeline["model"].get("byte_fallback"))
    for token, id in vocabulary.items():
        if id in special_ids:
            continue
        if id in added:
            text = added[id].content
            of[id] = surface = (text if kind == "byte_level" else text.replace(SPACE, " ")).encode()
            if kind == "byte_level" and len(surface) == 1:
                byte_ids[surface[0]] = id
        elif kind == "byte_level":
            of[id] = surface = _bytes_of(token)
            if len(surface) == 1 and len(token) == 1:
                byte_ids[surface[0]] = id
        elif fallback and (byte := BYTE_TOKEN.fullmatch(token)):
            of[id] = bytes([int(byte[1], 16)])
            byte_ids[int(byte[1], 16)] = id
        else:
            of[id] = token.replace(SPACE, " ").encode()
    return Surfaces(kind, of, byte_ids)


def _bytes_of(token: str) -> bytes:
    return token.translate(_TABLE).encode("latin-1") if _ALPHABET.fullmatch(token) else token.encode()
