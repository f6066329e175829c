"""Continuation tokenizer, for text that follows other text: no dummy prefix, nothing added, no control tokens."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import tokenizers

from alignment.text.control import Respelling
from alignment.text.cuts import Cut, Cuts, cuts_of
from alignment.text.surfaces import CHARACTER_OF_BYTE, SPACE, components

Windows = Literal["cuts", "pairs", "whole"]


@dataclass(frozen=True, slots=True)
class Continuation:
    """The continuation tokenizer, and how far its tokens depend on the text around them.

    Attributes:
        backend: the tokenizers backend.
        windows: how a longer text can be spelled from the spelling of a shorter one (see `spelling`).
        cut: whether text can be spelled in two parts between these neighbouring characters.
        runs: the runs of the splitting into words (see `cuts`), None where they are not known.
        margin: characters at the end of a text that an added token may still swallow.
        normalize: the normal form the backend brings text into, None where it leaves it as it is.
        merges_bytes: words are bytes merged in pairs, and there are no added tokens but special ones.
        respelling: how control tokens that the model composes out of text are spelled; None where it cannot.
    """

    backend: tokenizers.Tokenizer
    windows: Windows
    cut: Cut
    runs: Cuts | None
    margin: int
    normalize: Callable[[str], str] | None
    merges_bytes: bool
    respelling: Respelling | None = None

    def encode(self, text: str) -> list[int]:
        """The canonical tokens of `text`."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        return self.respelling.ids(encoding, text) if self.respelling else encoding.ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, for many texts at once."""
        encodings = self.backend.encode_batch(list(texts), add_special_tokens=False)
        if self.respelling is None:
            return [encoding.ids for encoding in encodings]
        pairs = zip(encodings, texts, strict=True)
        return [self.respelling.ids(encoding, text) for encoding, text in pairs]

    def encode_symbols(self, symbols: str) -> list[int]:
        """The tokens that the model alone makes of characters of its own alphabet, without any splitting."""
        ids = [token.id for token in self.backend.model.tokenize(symbols)]
        return self.respelling.symbols(ids) if self.respelling else ids

    def is_certain(self, id: int) -> bool:
        """Return whether this id of a spelling is the model's own token for its surface, not of a respelling."""
        return self.respelling is None or id not in self.respelling.parts

    def words(self, text: str) -> list[str]:
        """The words that normal `text` is split into, in the model's alphabet."""
        splitter = self.backend.pre_tokenizer
        return [word for word, _ in splitter.pre_tokenize_str(text)] if splitter else [text]


def continuation_of(pipeline: Mapping[str, Any], backend: tokenizers.Tokenizer) -> Continuation:
    """Turn `backend`, which reads special tokens as text, into a continuation tokenizer. It is changed.

    `pipeline` is its JSON.
    """
    normalizing = list(components(pipeline.get("normalizer")))
    normalizing = [step for step in normalizing if step["type"] not in ("Prepend", "Strip")]
    splitting = [_without_prefix(step) for step in components(pipeline.get("pre_tokenizer"))]
    _set_steps(backend, normalizing, splitting)

    spaces_become_marks = any(_is_space_mark(step) for step in normalizing)
    composes = any(step["type"] == "NFC" for step in normalizing)
    understood = all(step["type"] == "NFC" or _is_space_mark(step) for step in normalizing)
    added = pipeline.get("added_tokens", [])
    plain_added = [token for token in added if not token["special"]]
    if any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in plain_added):
        understood = False
    # A composed character can stand for four, and an added token may be compared with either.
    margin = max(len(token["content"]) for token in added) * (4 if composes else 1) if plain_added else 0

    if spaces_become_marks:
        splitting = [step for step in splitting if not _splits_at_space(step)]
    windows: Windows = "whole"
    cut = cuts_of({"type": "Sequence", "pretokenizers": splitting}) if splitting else None
    if understood and cut is not None and not (spaces_become_marks and splitting[0]["type"] != "Metaspace"):
        windows = "cuts"
    elif understood and _is_one_word(splitting) and _merges_pairs_only(pipeline["model"]):
        windows = "pairs"
    return Continuation(
        backend=backend,
        windows=windows,
        cut=_composing(cut) if cut and composes else cut or _never,
        runs=cut if isinstance(cut, Cuts) else None,
        margin=margin,
        normalize=backend.normalizer.normalize_str if composes and backend.normalizer else None,
        merges_bytes=not plain_added and _merges_bytes(pipeline["model"], splitting),
    )


def _never(a: str, b: str) -> bool:
    return False


def _composing(cut: Cut) -> Cut:
    """The cuts that NFC respects: `b` composes neither with what is before it nor with what comes after."""

    def respected(a: str, b: str) -> bool:
        return cut(a, b) and (b in " \n" or (b not in _composing_characters() and _is_inert(b)))

    return respected


def is_apart(character: str) -> bool:
    """Whether a text that begins with this character can be brought into NFC apart from what is before it."""
    return character.isascii() or (character not in _composing_characters() and _is_inert(character))


@cache
def _composing_characters() -> frozenset[str]:
    """Every character that is part of a canonical decomposition of two."""
    pairs = (unicodedata.decomposition(chr(code)).split() for code in range(0xA0, 0x30000))
    return frozenset(chr(int(code, 16)) for pair in pairs if len(pair) == 2 and pair[0][0] != "<" for code in pair)


@cache
def _is_inert(character: str) -> bool:
    """A starter in normal form that is no part of a Hangul syllable, as far as this Unicode version knows."""
    code = ord(character)
    hangul = 0x1100 <= code < 0x1200 or (0xAC00 <= code < 0xD7A4 and (code - 0xAC00) % 28 == 0)
    known = unicodedata.category(character) not in ("Cn", "Co", "Mn", "Mc", "Me")
    return known and not hangul and unicodedata.normalize("NFC", character) == character


def _without_prefix(step: Mapping[str, Any]) -> dict[str, Any]:
    if step["type"] == "ByteLevel":
        return {**step, "add_prefix_space": False}
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    return dict(step)


def _set_steps(
    backend: tokenizers.Tokenizer, normalizing: list[Mapping[str, Any]], splitting: list[dict[str, Any]]
) -> None:
    """Give `backend` these steps. The library builds steps from JSON only as part of a whole tokenizer."""
    pipeline: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": normalizing} if normalizing else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splitting} if splitting else None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    steps = tokenizers.Tokenizer.from_str(json.dumps(pipeline))
    backend.normalizer, backend.pre_tokenizer = steps.normalizer, steps.pre_tokenizer


def _is_space_mark(step: Mapping[str, Any]) -> bool:
    return bool(step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE)


def _splits_at_space(step: Mapping[str, Any]) -> bool:
    return bool(step["type"] == "Split" and step["pattern"] == {"String": " "})


def _is_one_word(splitting: list[dict[str, Any]]) -> bool:
    return all(step["type"] == "Metaspace" and not step.get("split", True) for step in splitting)


def _merges_pairs_only(model: Mapping[str, Any]) -> bool:
    """Return whether a word's tokens come only from applying ranked merges to its characters."""
    if model["type"] != "BPE" or model.get("dropout") or model.get("ignore_merges"):
        return False
    # Without the byte tokens neighbouring unknown characters would be joined.
    byte_tokens = {f"<0x{byte:02X}>" for byte in range(256)}
    return bool(model.get("byte_fallback")) and byte_tokens <= model["vocab"].keys()


def _merges_bytes(model: Mapping[str, Any], splitting: list[dict[str, Any]]) -> bool:
    in_bytes = any(step["type"] == "ByteLevel" for step in splitting)
    complete = model["type"] == "BPE" and set(CHARACTER_OF_BYTE.values()) <= model["vocab"].keys()
    return in_bytes and complete and not model.get("dropout")
