"""The tokens of a growing text in which a word has become long: a line of dashes, Chinese without punctuation.

There is no cut to begin a window at. So only the splitting into words is done again for all of it, which is
cheap; words that stay keep their tokens, and the word that has grown is tokenised from a known token near its
end, exact by the argument on pairs in `spelling`.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        self._words: list[str] = []
        self._lengths: list[int] = []

    def copy(self) -> LongWords:
        """One that goes on by itself."""
        other = LongWords(self._continuation, self._surfaces)
        other._words, other._lengths = list(self._words), list(self._lengths)
        return other

    def respell(self, text: str, ids: list[int], base: int) -> tuple[int, list[int]]:
        """Tokenise `text`, which `ids[base:]` spelled before it grew (if this was called then).

        Returns how many of `ids` stay and the tokens after them.
        """
        old, self._words = self._words, self._continuation.words(text)
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

    def _grow(self, word: str, known: int, ids: list[int], start: int, stop: int) -> tuple[int, list[int]]:
        """Tokenise `word`, whose first `known` symbols (bytes) are spelled by `ids[start:stop]`."""
        back = WITNESSES
        # A vocabulary may prefer a token for the whole to what merges make of it (`ignore_merges`). If it has one
        # for the word, that is it; if it has one for a window, the window does not begin with its witness.
        while stop - back > start and self._continuation.backend.token_to_id(word) is None:
            window = sum(len(self._surfaces[id] or b"") for id in ids[stop - back : stop])
            spelled = self._continuation.encode_symbols(word[known - window :])
            if spelled[0] == ids[stop - back] and self._continuation.is_certain(spelled[0]):
                return stop - back, spelled
            back *= 4
        return start, self._continuation.encode_symbols(word)
