"""Token boundaries: positions of a prompt's tokens in its texts, and boundaries that several tokenisations share.

Members see the same messages in templates and tokens of their own. They can be compared only on the text itself:
between two boundaries that all of them have, every member's tokens spell exactly the same characters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Span = tuple[int, int]


@dataclass(frozen=True)
class Located:
    """A member's prompt, with the character span of each token.

    Attributes:
        starts, ends: [n], the characters of the rendered prompt that each token covers. Tokens that share a
            character, which byte tokens do, both cover it; tokens that stand for none are empty.
        texts: for each text (the messages' contents, in order) its span of characters, without white space at
            its ends; None where the prompt does not hold it as it is.
    """

    starts: Indices
    ends: Indices
    texts: tuple[Span | None, ...]

    @classmethod
    def of(cls, spans: Iterable[Span], texts: Sequence[Span | None]) -> Located:
        """From the spans of all tokens. There may be millions: no other thread runs while numpy reads a list."""
        places = np.fromiter((place for span in spans for place in span), np.int64).reshape(-1, 2)
        return cls(places[:, 0], places[:, 1], tuple(texts))

    @classmethod
    def of_kept(
        cls, spans: Callable[[Indices], Iterable[Span]], kept: Indices, texts: Sequence[Span | None]
    ) -> Located:
        """The places of tokens that are kept of a prompt, all of them or as a `Room` does.

        A first one stands where what is left after it begins. Where it stood it would be a boundary that all
        members share, with another text after it for each.
        """
        if len(kept) < 2 or kept[1] == kept[0] + 1:
            return cls.of(spans(kept), texts)
        known = cls.of(spans(np.insert(kept, 1, kept[1] - 1)), texts)
        starts, ends = np.delete(known.starts, 1), np.delete(known.ends, 1)
        starts[0] = ends[0] = max(starts[1], known.ends[1])
        return cls(starts, ends, known.texts)

    @classmethod
    def of_surfaces(cls, surfaces: Sequence[bytes]) -> Located:
        """From what the tokens of a text spell; the text is nowhere if that is not UTF-8."""
        data = b"".join(surfaces)
        continues = np.frombuffer(data, np.uint8) & 0xC0 == 0x80
        begun = np.concatenate([[0], np.cumsum(~continues)])  # characters begun before each byte
        inside = np.append(continues, False)
        ends = np.cumsum([len(surface) for surface in surfaces], dtype=np.int64)
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)[: len(ends)]
        try:
            span = (0, len(data.decode()))
        except UnicodeDecodeError:
            return cls(begun[starts], begun[ends], (None,))
        return cls(begun[starts] - inside[starts], begun[ends], (span,))

    def boundaries(self, text: int) -> tuple[Indices, Indices]:
        """The boundaries between tokens within a text, its ends included.

        Returns:
            Ascending places in characters from the text's first, and for each the index of the token before it.
            The beginning of a prompt is no boundary: nothing comes before it.
        """
        places, tokens = self._boundaries
        begin, end = self.texts[text] or (0, -1)
        first, last = np.searchsorted(places, [begin, end + 1])
        return places[first:last] - begin, tokens[first:last]

    @cached_property
    def _boundaries(self) -> tuple[Indices, Indices]:
        """As `boundaries`, of the whole prompt. There may be thousands of texts in it."""
        before = np.arange(len(self.ends))
        # After what a tokenizer drops (white space beside a control token, say), the next token begins later.
        following = np.append(self.starts[1:], self.ends[-1:])
        whole = following >= self.ends  # else the two tokens share a character
        places = np.concatenate([self.ends[whole], following[whole]])
        tokens = np.concatenate([before[whole], before[whole]])
        order = np.lexsort((tokens, places))
        places, tokens = places[order], tokens[order]
        last = np.append(places[1:] != places[:-1], True)[: len(places)]  # after all empty tokens at a place
        return places[last], tokens[last]

    def inside(self, text: int, place: int) -> tuple[int, int] | None:
        """The token that has a place of a text, in characters from the text's first, inside it.

        Returns its index, and how many of the characters that it covers lie before the place. None where the place
        is a boundary or outside the text, and where the token shares a character with the one before.
        """
        span = self.texts[text]
        if span is None:
            return None
        at = span[0] + place
        index = int(np.searchsorted(self.ends, at, side="right"))
        if not 0 < index < len(self.ends) or self.starts[index] != self.ends[index - 1]:
            return None
        seen = at - int(self.starts[index])
        return (index, seen) if seen > 0 else None


def shared_boundaries(members: Mapping[str, Located], text: int) -> dict[str, Indices]:
    """For each member the tokens [B] before the boundaries in a text that all members have, in order.

    Between boundaries j and j + 1 a member has its tokens `tokens[j] + 1` to `tokens[j + 1]`.
    """
    own = {name: located.boundaries(text) for name, located in members.items()}
    places = reduce(_common, (places for places, _ in own.values()))
    return {name: tokens[np.searchsorted(places_here, places)] for name, (places_here, tokens) in own.items()}


def _common(one: Indices, other: Indices) -> Indices:
    return np.intersect1d(one, other, assume_unique=True)
