"""The tokens of a growing text in which a word has become long: a line of dashes, Chinese without punctuation.

There is no cut to begin a window at. So only the splitting into words is done again for all of it; words that
stay keep their tokens, and the word that has grown is tokenised from a known token near its end, exact by the
argument on pairs in `spelling`. Where the text ends with a stretch (see `cuts`), the splitting sees a few
characters of its beginning and its end instead of all, so that a round costs the same however long it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy, deepcopy

from alignment.text.continuation import Continuation
from alignment.text.cuts import Cuts, Kind

# Tokens from whose first a window begins: rarely do more than three change.
WITNESSES = 6
# A kind of character that was last seen so many characters ago is none of those in turns.
FAR = 1000


class _Stretch:
    """The text from character `start` on; `complete` is the last character of a kind that was not there before."""

    def __init__(self, start: int) -> None:
        self.start = self.complete = start
        self.last: dict[Kind, int] = {}  # by kind, its last character

    def see(self, kind: Kind, at: int) -> None:
        """Take in the character at `at`."""
        if kind not in self.last:
            self.complete = at
        self.last[kind] = at


class LongWords:
    """The words of a text and how many tokens each has.

    For a byte-level BPE whose added tokens are all special.
    """

    def __init__(self, continuation: Continuation, surfaces: Sequence[bytes | None]) -> None:
        self._continuation = continuation
        self._surfaces = surfaces
        self._longest = max((len(surface) for surface in surfaces if surface), default=0)
        self._text = ""
        self._stretches: tuple[_Stretch, ...] = ()  # of several kinds, and of one, at the end of the text
        self._words: list[str] = []
        self._lengths: list[int] = []

    def copy(self) -> LongWords:
        """One that goes on by itself."""
        other = copy(self)
        other._words, other._lengths = list(self._words), list(self._lengths)
        other._stretches = deepcopy(self._stretches)
        return other

    def respell(self, text: str, ids: list[int], base: int) -> tuple[int, list[int]]:
        """Tokenise `text`, which `ids[base:]` spelled before it grew (if this was called then).

        Returns how many of `ids` stay and the tokens after them.
        """
        old, self._words = self._words, self._split(text)
        same = 0
        while same < len(old) and same < len(self._words) and old[same] == self._words[same]:
            same += 1
        start = base + sum(self._lengths[:same])
        stop = start + self._lengths[same] if same < len(old) else start
        del self._lengths[same:]
        keep, spelled = start, []
        for number, word in enumerate(self._words[same:]):
            if number == 0 and same < len(old) and word.startswith(old[same]):
                keep, tokens = self._grow(word, len(old[same]), ids, start, stop)
            else:
                tokens = self._continuation.encode_symbols(word)
            self._lengths.append(len(tokens) + (keep - start if number == 0 else 0))
            spelled += tokens
        return keep, spelled

    def _split(self, text: str) -> list[str]:
        """The words of a text, which are most often those of the text before and more at the end."""
        old, self._text = self._text, text
        if self._continuation.runs is None:
            return self._continuation.words(text)
        goes_on = bool(old) and text.startswith(old)
        words = None
        if goes_on and self._words:
            words = next(filter(None, (self._split_around(text, old, part) for part in self._stretches)), None)
        self._note_kinds(self._continuation.runs, text, len(old) if goes_on else 0)
        return self._continuation.words(text) if words is None else words

    def _note_kinds(self, runs: Cuts, text: str, begins: int) -> None:
        """Find the stretches at the end of a text that has grown from its character `begins` on."""
        if not begins or not self._stretches:
            self._stretches = (_Stretch(begins), _Stretch(begins))
        several, one = self._stretches
        for at in range(begins, len(text)):
            kind = runs.kind(text[at])
            if kind not in one.last:
                one = _Stretch(at)
            if kind not in several.last and not runs.is_stretch(frozenset({*several.last, kind})):
                several = _Stretch(at)
            one.see(kind, at)
            several.see(kind, at)
        if old := [at for at in several.last.values() if at < len(text) - FAR]:
            several = _Stretch(max(old) + 1)
            for at in range(several.start, len(text)):
                several.see(runs.kind(text[at]), at)
        self._stretches = (several, one)

    def _split_around(self, text: str, old: str, stretch: _Stretch) -> list[str] | None:
        """The words of a text that was `old`, found without the middle of its stretch; None if unsure."""
        runs, kinds = self._continuation.runs, frozenset(stretch.last)
        assert runs is not None
        joint = stretch.complete + 2 * runs.reach + 1
        rest = min(len(old) - runs.reach, *stretch.last.values())
        if joint >= rest or not runs.is_stretch(kinds):
            return None
        words = self._continuation.words(old[:joint] + text[rest:])
        begins, same, start = len(old[:joint].encode()), 0, 0
        while same < len(words) and start + len(words[same]) <= begins:
            start += len(words[same])
            same += 1
        # The word around the joint begins well before it, holds all kinds there, and was a word of the old text.
        first = len(old.encode()[:start].decode(errors="replace"))
        before = old[max(first, stretch.start) : joint]
        shown = begins - start + len(old[joint:rest].encode())  # of the old word, up to where the text goes on
        if (
            same == len(words)
            or words[:same] != self._words[:same]
            or first > joint - runs.reach
            or {runs.kind(character) for character in before} != kinds
            or len(self._words) <= same
            or len(self._words[same]) < shown
        ):
            return None
        words[same] = self._words[same][:shown] + words[same][begins - start :]
        return words

    def _grow(self, word: str, known: int, ids: list[int], start: int, stop: int) -> tuple[int, list[int]]:
        """Tokenise `word`, whose first `known` symbols (bytes) are spelled by `ids[start:stop]`."""
        back = WITNESSES
        # A vocabulary may prefer a token for the whole to what merges make of it (`ignore_merges`). If it has one
        # for the word, that is it; if it has one for a window, the window does not begin with its witness.
        whole = len(word) <= self._longest and self._continuation.backend.token_to_id(word) is not None
        while stop - back > start and not whole:
            window = sum(len(self._surfaces[id] or b"") for id in ids[stop - back : stop])
            spelled = self._continuation.encode_symbols(word[known - window :])
            if spelled[0] == ids[stop - back] and self._continuation.is_certain(spelled[0]):
                return stop - back, spelled
            back *= 4
        return start, self._continuation.encode_symbols(word)
