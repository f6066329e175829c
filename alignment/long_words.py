"""The tokens of a growing text in which a word has become long: a line of dashes, Chinese without punctuation.

There is no cut to begin a window at. So only the splitting into words is done again for all of it; words that
stay keep their tokens, and the word that has grown is tokenised from a known token near its end, exact by the
argument on pairs in `spelling`. Where the text ends with a run (see `cuts`), the splitting sees a few characters
of it instead of all, so that a round costs the same however long the run is.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from alignment.text.continuation import Continuation

# Tokens from whose first a window begins: rarely do more than three change.
WITNESSES = 6


class LongWords:
    """The words of a text and how many tokens each has.

    For a byte-level BPE whose added tokens are all special.
    """

    def __init__(self, continuation: Continuation, surfaces: Sequence[bytes | None]) -> None:
        self._continuation = continuation
        self._surfaces = surfaces
        self._longest = max((len(surface) for surface in surfaces if surface), default=0)
        self._text = ""
        self._run = 0  # the character from which on the text is one run
        self._words: list[str] = []
        self._lengths: list[int] = []

    def copy(self) -> LongWords:
        """One that goes on by itself."""
        other = copy(self)
        other._words, other._lengths = list(self._words), list(self._lengths)
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
        runs, old = self._continuation.runs, self._text
        self._text = text
        if runs is None:
            return self._continuation.words(text)
        goes_on = text.startswith(old)
        words = self._split_run(text, old, runs.reach) if goes_on and self._words else None
        begins = len(old) if goes_on else 0
        self._run = self._run if goes_on else 0
        for at in range(max(begins, 1), len(text)):
            if (run := runs.run(text[at])) is None or run != runs.run(text[at - 1]):
                self._run = at
        return self._continuation.words(text) if words is None else words

    def _split_run(self, text: str, old: str, reach: int) -> list[str] | None:
        """The words of `old` and more after it, found with a part of the run at its end; None if unsure."""
        joint = self._run + 2 * reach + 1
        if joint + reach >= len(old):
            return None
        begins = len(old[:joint].encode())
        words = self._continuation.words(old[:joint] + text[len(old) :])
        last, before = len(self._words) - 1, self._words[:-1]
        start = sum(map(len, before))
        # The word around the joint begins before the last part of the run, and was the last one of the old text.
        if (
            words[:last] != before
            or not start <= len(old[: joint - reach].encode())
            or start + len(words[last]) <= begins
        ):
            return None
        words[last] = self._words[last] + words[last][begins - start :]
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
