"""The canonical spelling by the shortest route: all of the text, from the start, every time."""

from __future__ import annotations

import json
from functools import cache

import tokenizers

from alignment.text.tokenizer import Tokenizer


@cache
def _beginnings() -> frozenset[bytes]:
    """Every proper beginning of a character in UTF-8."""
    characters = (chr(code).encode() for code in range(0x80, 0x110000) if not 0xD800 <= code < 0xE000)
    return frozenset(character[:n] for character in characters for n in range(1, len(character)))


@cache
def _continuation(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """A tokenizer for text that continues other text, made by editing the JSON."""
    edited = json.loads(tokenizer.hf.backend_tokenizer.to_str())
    edited["post_processor"] = None
    normalizer = edited["normalizer"] or {}
    if normalizer.get("type") == "Sequence":
        normalizer["normalizers"] = [step for step in normalizer["normalizers"] if step["type"] != "Prepend"]
    text = json.dumps(edited)
    for scheme in ("always", "first"):
        text = text.replace(f'"prepend_scheme": "{scheme}"', '"prepend_scheme": "never"')
    text = text.replace('"add_prefix_space": true', '"add_prefix_space": false')
    backend = tokenizers.Tokenizer.from_str(text)
    backend.encode_special_tokens = True
    return backend


@cache
def _symbols(tokenizer: Tokenizer) -> dict[int, str]:
    """How a byte is written in the vocabulary."""
    backend = _continuation(tokenizer)
    if tokenizer.kind == "sentencepiece":
        return {byte: f"<0x{byte:02X}>" for byte in range(256)}
    of = {surface: id for id, surface in enumerate(tokenizer.surfaces) if surface and len(surface) == 1}
    return {surface[0]: backend.id_to_token(id) for surface, id in of.items()}


def spelled(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """The tokens of `data`, for a vocabulary that can spell every byte."""
    backend = _continuation(tokenizer)

    def of_text(text: bytes) -> list[int]:
        return backend.encode(text.decode(), add_special_tokens=False).ids

    def of_bytes(broken: bytes) -> list[int]:
        symbols = [_symbols(tokenizer)[byte] for byte in broken]
        if tokenizer.kind == "sentencepiece":
            return [backend.token_to_id(symbol) for symbol in symbols]
        return [token.id for token in backend.model.tokenize("".join(symbols))]

    ids: list[int] = []
    text = broken = b""
    at = 0
    while at < len(data) and data[at:] not in _beginnings():
        length = next((n for n in (1, 2, 3, 4) if _is_character(data[at : at + n])), 0)
        if length:
            if broken:
                ids += of_text(text) + of_bytes(broken)
                text = broken = b""
            text += data[at : at + length]
        else:
            broken += data[at : at + 1]
        at += length or 1
    return ids + of_text(text) + of_bytes(broken) + of_bytes(data[at:])


def _is_character(data: bytes) -> bool:
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False


# Each joins, splits, composes or breaks with some other.
FRAGMENTS = [
    *["a", "B", "z", "the", " The", "ing", "Lm", "ǅ", "ʰ", "ß", "ſ", "İ", "ŉ", "é", "e\u0301", "\u0301", "\u0338"],
    *[" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\x85", "\u2028", "▁", "\x00"],
    *[
        "'",
        "'s",
        "'LL",
        "n't",
        "1",
        "234",
        "½",
        "²",
        "Ⅷ",
        "٣",
        ".",
        "...",
        "!!",
        "-",
        "_",
        "/",
        "//",
        "=",
        "<",
        "|",
        ">",
    ],
    *["中", "文字", "。", "，", "か\u3099", "か", "가", "ᄀ", "ᅡ", "ᆨ", "각", "ไท", "य्", "क", "م"],
    *["😀", "👨‍👩‍👧", "\u200d", "🇩🇪", "\u0344", "\u0958", "\u2126", "\ufb1d", "\U0001d15e"],
    *["<s>", "</s>", "<|im_end|>", "<think>", "</think>", "<thi", "nk>", "é\u0301x"],
]
