"""GrammarTable: a vocabulary as llguidance sees it, which compiles grammars for it."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import llguidance
import numpy as np
from numpy.typing import NDArray

from alignment.text.tokenizer import Tokenizer
from fusion.sequence.grammar import Grammar, literal, refusal

COMPILED = 32  # compiled grammars that are kept

Bits = NDArray[np.uint8]

_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,  # about 20 ms
    "step_lexer_fuel": 200_000,  # about 14 ms
    "step_max_items": 50_000,
    "max_items_in_row": 10_000,
    "max_lexer_states": 20_000,  # 1 to 2 kB each
    "max_grammar_size": 50_000,
    "verbose_errors": False,
}


class GrammarTable:
    """A vocabulary as llguidance sees it, from the surfaces that Tutti itself writes text with.

    Attributes:
        width: of the logits, V; ids beyond the vocabulary are never admitted.
        end_ids: ids that end an answer.
        surfaces: the bytes of each id, b"" for special tokens, padding and bytes that are in no UTF-8.
        text_ids: bool [V], ids that stand for text.
        text_bits, end_bits: those that stand for text and those that end an answer, a bit each as in `bits_of`.
    """

    def __init__(self, tokenizer: Tokenizer, *, width: int, end_ids: Sequence[int]) -> None:
        self.width = max(width, tokenizer.vocabulary_size)
        self.end_ids = tuple(end_ids)
        found = [surface or b"" for surface in tokenizer.surfaces]
        # llguidance marks special tokens with a first byte of 0xFF, which is in no UTF-8.
        self.surfaces = [b"" if s.startswith(b"\xff") else s for s in found]
        self.surfaces += [b""] * (self.width - len(found))
        self.text_ids: NDArray[np.bool_] = np.array([bool(s) for s in self.surfaces])
        self.text_bits = self.bits_of(np.flatnonzero(self.text_ids))
        self.end_bits = self.bits_of(self.end_ids)
        self._special = {str(tokenizer.hf.convert_ids_to_tokens(id)): id for id in tokenizer.special_ids}
        # Of several ids with one surface llguidance admits one only: the one that the tokenizer writes.
        alone = {id for id in tokenizer.byte_ids if id is not None} if tokenizer.kind == "sentencepiece" else set()
        first: dict[bytes, int] = {}
        for id in sorted(range(len(self.surfaces)), key=lambda id: (id in alone, id)):
            if self.surfaces[id]:
                first.setdefault(self.surfaces[id], id)
        self._same = {id: first[s] for id, s in enumerate(self.surfaces) if s and first[s] != id}
        self._twins = np.fromiter(self._same.keys(), np.int64, len(self._same))
        self._originals = np.fromiter(self._same.values(), np.int64, len(self._same))
        self._encode = tokenizer.continuation.encode
        self.ll = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Wrapped(self)), n_vocab=self.width, eos_token=list(self.end_ids)
        )
        self._compiled: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def special(self, text: str) -> int | None:
        """The id of the special token spelled `text`."""
        return self._special.get(text)

    def tokens_of(self, text: str) -> list[int]:
        """`text` as an answer spells it: the special token of that spelling, or the canonical tokens."""
        special = self.special(text)
        return self._encode(text) if special is None else [special]

    def terms(self, text: str) -> str:
        """`text` as terms of Lark rules, each special token that it spells as that token."""
        spelled = "|".join(map(re.escape, sorted(filter(None, self._special), key=len, reverse=True)))
        pieces = re.split(f"({spelled})", text) if spelled else [text]
        return " ".join(
            f"<[{self._special[piece]}]>" if piece in self._special else literal(piece)
            for piece in pieces
            if piece
        )

    def original(self, id: int) -> int:
        """The id that llguidance knows for the surface of `id`."""
        return self._same.get(id, id)

    @cached_property
    def by_surface(self) -> tuple[NDArray[np.int64], list[bytes]]:
        """All ids in the order of their surfaces, and these."""
        order = sorted(range(len(self.surfaces)), key=self.surfaces.__getitem__)
        return np.array(order), [self.surfaces[id] for id in order]

    def words(self, rows: int) -> NDArray[np.int32]:
        """Room for the bits of so many sequences, as llguidance fills it: int32 [rows, V / 32], all 0."""
        return np.zeros((rows, (self.width + 31) // 32), np.int32)

    def bits_of(self, ids: Sequence[int] | NDArray[np.int64]) -> Bits:
        """A set of ids, uint8 [V / 8] in whole words of four, a bit each in little order."""
        bits: Bits = self.words(1)[0].view(np.uint8)
        places = np.asarray(ids, np.int64)
        np.bitwise_or.at(bits, places >> 3, (1 << (places & 7)).astype(np.uint8))
        return bits

    def spread(self, bits: Bits) -> None:
        """Admit every id whose surface is admitted."""
        if len(self._twins):
            admitted = bits[self._originals >> 3] >> (self._originals & 7) & 1
            np.bitwise_or.at(bits, self._twins >> 3, (admitted << (self._twins & 7)).astype(np.uint8))

    def compile(self, grammar: Grammar) -> llguidance.LLMatcher:
        """A matcher at the beginning of `grammar`. Slow the first time (milliseconds to a second): use a thread.

        Raises:
            InvalidRequestError: llguidance cannot enforce it; the message names the keyword.
        """
        with self._lock:
            if (kept := self._compiled.get(grammar.text)) is not None:
                self._compiled.move_to_end(grammar.text)
                return kept.deep_copy()
        matcher = self._matcher(grammar)
        with self._lock:
            self._compiled[grammar.text] = matcher.deep_copy()
            if len(self._compiled) > COMPILED:
                self._compiled.popitem(last=False)
        return matcher

    def check(self, grammar: Grammar) -> None:
        """Raise what `compile` would; nothing is kept."""
        self._matcher(grammar)

    def _matcher(self, grammar: Grammar) -> llguidance.LLMatcher:
        limits = llguidance.LLParserLimits(**_LIMITS)
        matcher = llguidance.LLMatcher(self.ll, grammar.text, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # some grammars, such as one that is nothing but itself, fail here only
        if matcher.is_error():
            raise refusal(matcher.get_error(), grammar.param)
        return matcher


class _Wrapped:
    """The object that llguidance builds its tokenizer from."""

    bos_token_id = None

    def __init__(self, table: GrammarTable) -> None:
        self.eos_token_id = table.end_ids[0]
        self.special_token_ids = sorted({*table._special.values(), *table.end_ids})
        self.tokens = ["" if id in table._same else surface for id, surface in enumerate(table.surfaces)]
        self.tokens = [token or b"" for token in self.tokens]
        for text, id in table._special.items():
            self.tokens[id] = text.encode()
        self._table = table

    def __call__(self, text: str) -> list[int]:
        if isinstance(text, bytes):
            raise TypeError("text only")  # llguidance asks once, and sends text from then on
        return [self._table.original(id) for id in self._table._encode(text)]
