"""The tokens in which one member reads the text generated so far.

Every round the text grows by the bytes of one token of the pivot, and every other member needs the canonical
tokens of the longer text, which differ from those it has in the last few. `Spelling` keeps them. After every call
they are what the tokenizer makes of the whole text, at the cost of tokenising a short window at its end.

Why a window is exact:

*Cuts* (tokenizers that split text into words, `cuts`). Between some neighbouring characters a word always ends,
and nothing after them can change the words before. Words are tokenised on their own. So the tokens before the
last cut are final, and those after it are the tokens of the text after it. Where a word grows long there is no
cut for a while (`long_words`).

*Pairs* (a BPE that merges across the whole text, like Llama 2's). BPE applies the merge of lowest rank first,
the leftmost of equals. Take tokens of which every two neighbours are what BPE makes of their two surfaces, and
follow BPE on the whole text. Up to the first merge across a token border, each token's characters are merged in
the order in which BPE merges them in the two-token text around that border; so that merge would happen there
as well, but there it does not. Hence none happens, and the sequence is canonical. Conversely neighbours in a
canonical sequence are canonical as a pair. So if the tokens of a window that begins with the known token t again
begin with t, all pairs agree, and the window's tokens follow those before t. If not, the window begins further
back, at last with the text.

*Whole*: a tokenizer that is not understood well enough has the whole text tokenised every time.

Added tokens are found before any of this. They can swallow characters as far back as the longest is long, which
is the margin kept between a window's beginning and the end of the text it was known for.

Text is bytes. A beginning of a character at the end is spelled in byte tokens, where the vocabulary has them; so
are bytes that no character begins with or ends with, for good. Valid text after such bytes is tokenised on its
own.
"""

from __future__ import annotations

from dataclasses import dataclass

from alignment.long_words import WITNESSES, LongWords
from alignment.text.characters import pieces_of
from alignment.text.continuation import is_apart
from alignment.text.surfaces import CHARACTER_OF_BYTE, SPACE
from alignment.text.tokenizer import Tokenizer

# Characters without a cut from which on words are looked at one by one.
_LONG = 96


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of a list of tokens: its first `keep` stay, and `append` follow them."""

    keep: int
    append: list[int]


@dataclass(frozen=True, slots=True)
class Mark:
    """A point that a `Spelling` can go back to: all that later text may change."""

    ids: list[int]
    base: int
    text: str
    normal: str
    stop: int
    lead: bytes
    pending: bytes
    broken: bytes
    long: LongWords | None


class Spelling:
    """One member's canonical tokens of the text generated so far, as a continuation of its prompt.

    Attributes:
        ids: the tokens.
        lead: text that stands between the prompt and the generated text for this member; b"" as soon as there is
            any text, whose spelling it is a part of.
        pending: the bytes of an unfinished character that end the text.
    """

    def __init__(self, tokenizer: Tokenizer, lead: bytes = b"") -> None:
        self.ids: list[int] = []
        self._surfaces = tokenizer.surfaces
        self._reads_mark_as_space = tokenizer.kind == "sentencepiece"
        self._continuation = tokenizer.continuation
        self._byte_ids = tokenizer.byte_ids
        self._byte_level = tokenizer.kind == "byte_level"
        self.lead = lead
        self.pending = b""
        self._broken = b""  # bytes before those that are no text
        self._text = ""  # valid text before those, from `_base` on
        self._normal = ""  # that in normal form, with cuts
        self._base = 0  # ids before this are final
        self._long: LongWords | None = None  # the words of `_text` while it is long
        self._stop = 0  # ids before this spell valid text up to `_broken`
        self._low = 0  # during a call: ids before this are untouched,
        self._old: list[int] = []  # and these were those from it on

    def extend(self, data: bytes) -> Edit | None:
        """Append `data` to the text and bring `ids` up to date; the edit is relative to `ids` before the call.

        `append` is empty only when nothing changed or no token is left. None while the text ends inside a
        character that this tokenizer cannot express: the bytes are remembered and `ids` stays.
        """
        if not data:
            return Edit(len(self.ids), [])
        if self.lead:
            data, self.lead = self.lead + data, b""
        pieces, pending = pieces_of(self.pending + data)
        if not self._spells(pending):
            self.pending += data
            return None
        self._low, self._old = len(self.ids), []
        if self.pending or self._broken:
            self._replace(self._stop, self._spell_bytes(self._broken))
        self.pending = pending
        for piece in pieces:
            if isinstance(piece, str):
                self._append_text(piece)
            else:
                self._append_broken(piece)
        if pending:
            self._replace(len(self.ids), self._spell_bytes(pending))
        return self._edit()

    def mark(self) -> Mark:
        """Mark the present state for `restore`, at the cost of a copy of the tokens that are not final."""
        long = None if self._long is None else self._long.copy()
        return Mark(
            self.ids[self._base :],
            self._base,
            self._text,
            self._normal,
            self._stop,
            self.lead,
            self.pending,
            self._broken,
            long,
        )

    def restore(self, mark: Mark) -> None:
        """Take back all text since `mark`, which may be restored again."""
        self.ids[mark.base :] = mark.ids
        self._base, self._text, self._normal = mark.base, mark.text, mark.normal
        self._stop = mark.stop
        self.lead, self.pending, self._broken = mark.lead, mark.pending, mark.broken
        self._long = None if mark.long is None else mark.long.copy()

    def _edit(self) -> Edit:
        ids, keep = self.ids, self._low
        for old in self._old:
            if keep == len(ids) or ids[keep] != old:
                break
            keep += 1
        if ids and keep == len(ids) and keep < self._low + len(self._old):
            keep -= 1  # shorter by normalisation: there is a token to append, if any is left
        return Edit(keep, ids[keep:])

    def _replace(self, start: int, ids: list[int]) -> None:
        if start < self._low:
            self._old[:0] = self.ids[start : self._low]
            self._low = start
        self.ids[start:] = ids

    def _append_text(self, piece: str) -> None:
        if self._broken:
            self._broken = b""
            self._base, self._text, self._normal, self._long = len(self.ids), "", "", None
        if self._reads_mark_as_space:
            piece = piece.replace(SPACE, " ")
        windows = self._continuation.windows
        if windows == "pairs":
            self._respell_by_pairs(piece)
        elif windows == "cuts":
            self._respell_by_cuts(piece)
        else:
            self._text += piece
            self._replace(self._base, self._continuation.encode(self._text))
        self._stop = len(self.ids)

    def _append_broken(self, piece: bytes) -> None:
        if not self._spells(piece):
            self._append_text(piece.decode(errors="replace"))
            return
        self._broken += piece
        self._replace(self._stop, self._spell_bytes(self._broken))

    def _spells(self, data: bytes) -> bool:
        """Return whether there is a token for each of these bytes."""
        return all(self._byte_ids[byte] is not None for byte in data)

    def _spell_bytes(self, data: bytes) -> list[int]:
        if self._byte_level:
            return self._continuation.encode_symbols("".join(CHARACTER_OF_BYTE[byte] for byte in data))
        return [id for byte in data if (id := self._byte_ids[byte]) is not None]

    def _respell_by_cuts(self, piece: str) -> None:
        """Tokenise the text from the last known cut on, and look for a later one."""
        continuation = self._continuation
        text = self._text = self._text + piece
        normal = self._normal = self._normalized(piece)
        known = len(self.ids)
        if len(text) > _LONG and continuation.merges_bytes:
            self._long = self._long or LongWords(continuation, self._surfaces)
            self._replace(*self._long.respell(normal, self.ids, self._base))
        else:
            self._long = None
            self._replace(self._base, continuation.encode(text))
        # Between tokens that were there before, all but the last few have been looked at.
        self._advance_to_cut(normal, max(self._base, known - WITNESSES - continuation.margin))

    def _normalized(self, piece: str) -> str:
        """The normal form of `_text`, which has become longer by `piece`."""
        normalize = self._continuation.normalize
        if normalize is None:
            return self._text
        if is_apart(piece[0]):
            return self._normal + (piece if piece.isascii() else normalize(piece))
        return normalize(self._text)

    def _advance_to_cut(self, normal: str, first: int) -> None:
        """Begin the next window at the last cut, after token `first`, that nothing can move any more."""
        text, surfaces, ids = self._text, self._surfaces, self.ids
        cut, margin = self._continuation.cut, self._continuation.margin
        data = normal.encode()
        is_ascii = len(data) == len(normal)
        at = len(data)
        for index in range(len(ids) - 1, first, -1):
            surface = surfaces[ids[index]]
            if surface is None:
                return
            at -= len(surface)
            if at <= 0:
                return
            if data[at] & 0xC0 == 0x80:
                continue
            length = len(data) - at if is_ascii else len(data[at:].decode())
            if length < margin or not cut(normal[-length - 1], normal[-length]):
                continue
            # The spelling and the text must agree to the byte, or positions in one say nothing of the other.
            spelled = b"".join(surfaces[id] or b"" for id in ids[index:])
            if spelled == data[at:] and text[-length:] == normal[-length:]:
                self._base, self._text, self._long = index, text[-length:], None
                self._normal = self._text
                return

    def _respell_by_pairs(self, piece: str) -> None:
        """Tokenise a window that begins with a known token; further back while it does not come out again."""
        encode, ids = self._continuation.encode, self.ids
        text = self._text = self._text + piece
        known = len(text) - len(piece)
        start = len(ids) - WITNESSES
        while start > self._base:
            surface = b"".join(self._surfaces[id] or b"" for id in ids[start:])
            if surface[0] & 0xC0 == 0x80:  # a byte token inside a character
                start -= 1
                continue
            window = surface.decode()
            is_certain = self._continuation.is_certain(ids[start])
            if (
                is_certain
                and len(window) >= self._continuation.margin
                and text.startswith(window, known - len(window))
            ):
                spelled = encode(text[known - len(window) :])
                if spelled[0] == ids[start]:
                    self._replace(start, spelled)
                    return
            start -= 3 * (len(ids) - start)
        self._replace(self._base, encode(text))
