"""Control tokens: which ids of a vocabulary they are, and how text that looks like one is spelled without it.

Files flag most control tokens as special. Others are found by what the chat template writes around messages (turn
markers that are added tokens without the flag, or plain pieces of the vocabulary), and by their shape
(`<|im_end|>`, `<s>`). Markers of an answer's parts, `<think>` or `<tool_call>`, are words: models write them and
read them as text, so they stay text unless they are flagged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import tokenizers

from alignment.text.surfaces import BYTE_TOKEN, SPACE, Kind

Span = tuple[int, int]

# Names in angle brackets that mark the parts of an answer.
_WORD = re.compile(
    r"</?(?:[\w-]+:)?(?:think(?:ing)?|thought|reason(?:ing)?|reflection|answer|solution|invoke|parameter|"
    r"arg_key|arg_value|tools?|tool[_-]?calls?|tool[_-]?responses?|function|function[_-]?calls?)>",
    re.IGNORECASE,
)
# Spelled like this a token is a control token, whether the template is seen to write it or not.
_PIPES = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)
_CLASSIC = re.compile(
    r"</?s>|<(?:unk|pad|mask|bos|eos|eot|eod|sep|cls|start_of_turn|end_of_turn|begin_of_text|end_of_text|"
    r"endoftext|im_start|im_end)>|\[(?:UNK|PAD|MASK|BOS|EOS|SEP|CLS)\]"
)
_TAGS = ("<s>", "</s>")  # struck text, where a vocabulary has HTML's tags
_BRACKETED = re.compile(r"[<\[{«⟨].*\S.*[>\]}»⟩]", re.DOTALL)


class Spelled(NamedTuple):
    """Tokens with the places they stand at, as the library gives a text's."""

    ids: list[int]
    offsets: list[Span]


Encoded = tokenizers.Encoding | Spelled


def place_of(encoded: Encoded, index: int) -> Span:
    """The characters that a token covers.

    The library has a list of all of a text's too, but no other thread runs while it makes that.
    """
    if isinstance(encoded, Spelled):
        return encoded.offsets[index]
    return encoded.token_to_chars(index) or (0, 0)  # none for what a post-processor adds


def control_ids(
    vocabulary: Mapping[str, int],
    added: Mapping[int, tokenizers.AddedToken],
    named: Iterable[int],
    written: Iterable[int],
    *,
    kind: Kind,
    of_model: Callable[[int], str | None],
    ends: Collection[int],
) -> frozenset[int]:
    """The ids of a vocabulary's control tokens.

    Args:
        vocabulary: spelling -> id, added tokens included.
        added: the added tokens by id.
        named: ids to which the tokenizer's configuration gives a role: end, beginning, padding. A role makes no
            control token of a word of the model's own: a copied `pad_token_id` of 0 is `!` in many vocabularies.
        written: ids in which the chat template's own text is read.
        kind: how the vocabulary writes bytes. A byte-level one may have merged the HTML tag `<s>`; others have it
            among HTML's other tags.
        of_model: the spelling of an id in the model's own vocabulary, without added tokens.
        ends: ids that end a text, whatever they look like.
    """
    named = frozenset(named)
    words = {id for id in named - frozenset(ends) if _is_plain_word(of_model(id))}
    flagged = {id for id, token in added.items() if token.special} - words
    shaped = {id for text, id in vocabulary.items() if text[:1] in "<[" and _PIPES.fullmatch(text)}
    classic = vocabulary if kind == "sentencepiece" else {token.content: id for id, token in added.items()}
    shaped |= {
        id
        for text, id in classic.items()
        if text[:1] in "<[" and _CLASSIC.fullmatch(text) and not (text in _TAGS and "<u>" in vocabulary)
    }
    spelling = {id: token.content for id, token in added.items()}
    marking = {id for id in written if id in spelling and _could_mark(spelling[id])}
    if len(marking) < len(written := set(written)):
        by_id = {id: text for text, id in vocabulary.items() if id in written and id not in spelling}
        marking |= {id for id, text in by_id.items() if len(text) > 2 and _is_bracketed(text)}
    return frozenset(flagged.union(named - words, shaped, marking))


def _is_bracketed(text: str) -> bool:
    return bool(_BRACKETED.fullmatch(text)) and not _WORD.fullmatch(text) and not BYTE_TOKEN.fullmatch(text)


def _is_plain_word(text: str | None) -> bool:
    """Return whether a model's own token can be no marker of any kind; None is none of its own."""
    return text is not None and not _WORD.fullmatch(text) and not _could_mark(text)


def _could_mark(text: str) -> bool:
    """Return whether an added token that a template writes can be a marker: white space and words are not."""
    if _WORD.fullmatch(text.strip()):
        return False
    core = text.replace(SPACE, " ").strip()
    has_words = any(character.isalnum() for character in core)
    has_signs = any(not character.isalnum() and not character.isspace() for character in core)
    return has_signs and (has_words or len(core) > 2)


class Respelling:
    """Spells the text of control tokens in other tokens, where a vocabulary's model composes one out of text.

    A Unigram model may hold `</s>` among its pieces, and a BPE may merge one. Replacing such a token where it
    comes out, always by the same tokens, leaves every other text as the model spells it.

    Attributes:
        parts: ids that have stood for a control token so far, and so may be only a part of what the model made.
    """

    def __init__(
        self,
        spelling: Mapping[int, str],
        encode: Callable[[str], Sequence[int]],
        surfaces: Sequence[bytes | None],
        byte_ids: Sequence[int | None],
        unknown: int | None,
    ) -> None:
        self.parts: set[int] = set()
        self._spelling = spelling
        self._control = frozenset(spelling)
        self._encode = encode
        self._surfaces = surfaces
        self._byte_ids = byte_ids
        self._unknown = unknown
        self._known: dict[int, list[int]] = {}

    def of(self, id: int) -> list[int]:
        """The ids that spell the text of a control token, none of them a control token."""
        if id not in self._known:
            self._known[id] = self._find(self._spelling[id].replace(SPACE, " "))
            self.parts.update(self._known[id])
        return self._known[id]

    def _find(self, text: str) -> list[int]:
        for cut in range(1, len(text)):
            ids = [*self._encode(text[:cut]), *self._encode(text[cut:])]
            if self._is_text(ids) and b"".join(self._surfaces[id] or b"" for id in ids) == text.encode():
                return ids
        ids = []
        for character in text:
            one = list(self._encode(character))
            if not self._is_text(one):
                one = [id for byte in character.encode() if (id := self._byte_ids[byte]) is not None]
            ids += one
        return ids

    def _is_text(self, ids: Sequence[int]) -> bool:
        return self._control.isdisjoint(ids)

    def ids(self, encoding: tokenizers.Encoding, text: str) -> list[int]:
        """The ids of `text`, which `encoding` is the library's reading of, as plain text."""
        ids: list[int] = encoding.ids
        return ids if self._is_text(ids) else self.spelled(encoding, text).ids

    def symbols(self, ids: list[int]) -> list[int]:
        """As `ids`, for tokens that the model alone has made."""
        if self._is_text(ids):
            return ids
        return [new for id in ids for new in (self.of(id) if id in self._control else (id,))]

    def spelled(self, encoding: tokenizers.Encoding, text: str) -> Encoded:
        """As `ids`, with the places of the tokens. Tokens that a post-processor added stay."""
        own, added = encoding.ids, encoding.special_tokens_mask
        if not any(id in self._control and not is_added for id, is_added in zip(own, added, strict=True)):
            return encoding
        spelled = Spelled([], [])
        for index, (id, is_added) in enumerate(zip(own, added, strict=True)):
            span = place_of(encoding, index)
            if id not in self._control or is_added:
                ids = [id]
            elif id == self._unknown:
                ids = self._of_unknown(id, text[span[0] : span[1]])
            else:
                ids = self.of(id)
            spelled.ids.extend(ids)
            spelled.offsets.extend([span] if ids == [id] else self._places(ids, span))
        return spelled

    def _of_unknown(self, id: int, text: str) -> list[int]:
        """The unknown token for what the vocabulary lacks, and its name spelled where `text` says it."""
        spelled: list[int] = []
        for number, between in enumerate(text.split(self._spelling[id])):
            spelled += self.of(id) if number else []
            spelled += [id] if between.strip() else []
        return spelled or [id]

    def _places(self, ids: list[int], span: Span) -> list[Span]:
        """Places within `span` for the tokens that stand there; all of it for each where they do not add up."""
        places, at = [], span[0]
        for id in ids:
            size = len((self._surfaces[id] or b"").decode(errors="replace"))
            places.append((at, at + size))
            at += size
        return places if at == span[1] else [span] * len(ids)
