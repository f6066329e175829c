"""Cuts: pairs of characters that a pre-tokenizer can never join.

A pre-tokenizer splits text into words with a regular expression, scanning from the left. A *cut* is a pair of
neighbouring characters (a, b) that no word can contain and that no attempt at a word can look beyond: wherever
`ab` stands there is a word boundary between the two, and the words before it depend on the text up to `b`
alone. So text can be spelled in two independent parts at a cut, and nothing that comes later changes the
first.

Which pairs these are is read off the expression with Glushkov's construction: every character class in it is a
position, `follow` says which positions can consume the next character after one, and (a, b) is a cut when no
position that matches `a` is followed by one that matches `b`, and `a` or `b` is certain to be in a word. A
lookahead of one character sees `b` at most, and is left out; a longer one counts as if it consumed what it sees.
Everything that is not understood (anchors, lookbehind, backreferences) means no cuts at all: slow, never wrong.

A *run* is text without cuts of characters that the same positions match, such as a line of dashes. Where these
positions follow each other only one way round or each itself, and no counted repetition (`{1,3}`) is among them,
the expression cannot tell how long a run is beyond as many characters as it has positions. Take what becomes of an
attempt from each position at a character of the run, going back from the run's end: it is a function of the same
at the next character, always the same function. A position's outcome settles once those that follow it have: a
loop keeps the first outcome that it finds, and what fails goes on failing. So after at most as many characters as
there are positions each outcome is for good a place counted from the run's end, one counted from the character,
or none; and words are the same in a shorter run.

A *stretch* is a run, or text of several kinds of characters in turns, such as line ends and tabs, of which a word
that holds all kinds cannot tell how long it is. That is known where every position that matches one of them is
a class with a greedy loop of its own that matches all of them, or else is followed by none that matches one of
them, but for its own greedy loop, and by no lookahead. The former prefer to go round, so each keeps the first
outcome that it finds, going back. The others end at the next character of another kind, and so give an outcome
wherever a character of the right kind stands, or nowhere. So if the word that begins at some place goes beyond a
part of the stretch with all kinds in it, then none of them has given an outcome to a loop that the expression
prefers, and the word ends at the same place, counted from the end, whatever characters of these kinds are added.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import Regex, pre_tokenizers

from alignment.text.surfaces import SPACE, components

Cut = Callable[[str, str], bool]
Kind = tuple[int, ...]  # of a character: by step, the positions that match it, as bits

# The words of GPT-2, which the ByteLevel pre-tokenizer has built in.
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ESCAPE = re.compile(
    r"\\(?:[pP]\{[^}]*\}|x\{[0-9A-Fa-f]+\}|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|[sSdDwWhHrntfv]|[^\w\s])"
)
_QUANTIFIER = re.compile(r"(?:([?*+])|\{(\d*)(,?)(\d*)\})([?+]?)")
_GROUP = re.compile(r"\((?:\?(i?:|=|!))?(?!\?)")


class _NotUnderstoodError(Exception):
    """The expression has a construct whose reach is not known."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of an expression: sets of positions as bit masks.

    `solo` are positions that can make up a match of the whole part alone, whatever stands around it; `empty`
    says the same of the empty match, `nullable` only that an empty match may be possible.
    """

    first: int = 0
    last: int = 0
    solo: int = 0
    nullable: bool = True
    empty: bool = True


class _Expression:
    """The positions of a regular expression in Oniguruma's syntax, and which can follow which."""

    def __init__(self, pattern: str) -> None:
        self.classes: list[str] = []
        self.follow: list[int] = []
        self.counted = 0  # positions that are repeated a number of times, or looked ahead to beyond one character
        self.loops = 0  # positions that are single classes with a greedy * or +
        self.unlike = 0  # positions under another quantifier than those and a greedy ?
        self.guarded = 0  # positions after which an expression looks ahead
        self._pattern = pattern
        self._at = 0
        self.whole = self._alternatives("")
        if self._at < len(pattern) or self.whole.nullable:
            raise _NotUnderstoodError(pattern)

    def _alternatives(self, flags: str) -> _Part:
        parts = [self._sequence(flags)]
        while self._pattern.startswith("|", self._at):
            self._at += 1
            parts.append(self._sequence(flags))
        joined = parts[0]
        for part in parts[1:]:
            joined = _Part(
                joined.first | part.first,
                joined.last | part.last,
                joined.solo | part.solo,
                joined.nullable or part.nullable,
                joined.empty and part.empty,
            )
        return joined

    def _sequence(self, flags: str) -> _Part:
        joined = _Part()
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            part = self._quantified(flags)
            self._link(joined.last, part.first)
            if not (part.first or part.empty):
                self.guarded |= joined.last
            joined = _Part(
                joined.first | (part.first if joined.nullable else 0),
                part.last | (joined.last if part.nullable else 0),
                (joined.solo if part.empty else 0) | (part.solo if joined.empty else 0),
                joined.nullable and part.nullable,
                joined.empty and part.empty,
            )
        return joined

    def _quantified(self, flags: str) -> _Part:
        begins = len(self.classes)
        part = self._single(flags)
        while quantifier := _QUANTIFIER.match(self._pattern, self._at):
            self._at = quantifier.end()
            sign, low, _, high, suffix = quantifier.groups()
            inside = (1 << len(self.classes)) - (1 << begins)
            if not sign:
                self.counted |= inside
            if suffix or not sign or self.loops & inside:
                self.unlike |= inside
            elif sign != "?" and len(self.classes) == begins + 1:
                self.loops |= inside
            least = {"?": 0, "*": 0, "+": 1}[sign] if sign else int(low or 0)
            if sign in ("*", "+") or suffix == "+" or (not sign and high != "1"):
                self._link(part.last, part.first)
            # A possessive part, or one that Oniguruma repeats for the extra plus, may refuse to be empty.
            part = replace(
                part,
                solo=part.solo if least <= 1 else 0,
                nullable=part.nullable or least == 0,
                empty=(part.empty or least == 0) and suffix != "+",
            )
        return part

    def _single(self, flags: str) -> _Part:
        character = self._pattern[self._at]
        if character == "(":
            return self._group(flags)
        if character == "[":
            end = self._end_of_class()
        elif character == "\\":
            escape = _ESCAPE.match(self._pattern, self._at)
            if escape is None:
                raise _NotUnderstoodError(self._pattern)
            end = escape.end()
        elif character == "$":  # looks one character ahead, as `(?=\n)` does
            self._at += 1
            self._position(r"\n")
            return _Part(empty=False)
        elif character in "^)?*+{":
            raise _NotUnderstoodError(self._pattern)
        else:
            end = self._at + 1
        written = self._pattern[self._at : end]
        self._at = end
        position = self._position(f"(?{flags}:{written})" if flags else written)
        return _Part(position, position, position, nullable=False, empty=False)

    def _position(self, written: str) -> int:
        """A new position for this class, as a bit."""
        self.classes.append(written)
        self.follow.append(0)
        return 1 << (len(self.classes) - 1)

    def _group(self, flags: str) -> _Part:
        opening = _GROUP.match(self._pattern, self._at)
        if opening is None:
            raise _NotUnderstoodError(self._pattern)
        self._at = opening.end()
        positions_before = len(self.classes)
        inner = self._alternatives("i" if opening[1] == "i:" else flags)
        if not self._pattern.startswith(")", self._at):
            raise _NotUnderstoodError(self._pattern)
        self._at += 1
        if opening[1] not in ("=", "!"):
            return inner
        if not inner.nullable and not any(self.follow[positions_before:]):
            return _Part(empty=False)  # one character, which is known wherever a cut is asked about
        self.counted |= (1 << len(self.classes)) - (1 << positions_before)
        return replace(inner, solo=0, nullable=True, empty=False)

    def _end_of_class(self) -> int:
        depth, at = 0, self._at
        while at < len(self._pattern):
            character = self._pattern[at]
            at += 2 if character == "\\" else 1
            depth += {"[": 1, "]": -1}.get(character, 0)
            if depth == 0:
                return at
        raise _NotUnderstoodError(self._pattern)

    def _link(self, before: int, after: int) -> None:
        for position in range(before.bit_length()):
            if before >> position & 1:
                self.follow[position] |= after


class _Words:
    """One splitting step. Characters are looked up in the tokenizer's own regex engine, once each."""

    def __init__(self, pattern: str, *, splits: bool = True) -> None:
        expression = _Expression(pattern)
        self._splits = splits
        self._solo = expression.whole.solo
        self._follow = expression.follow
        self._counted = expression.counted
        self._loops = expression.loops & ~expression.unlike
        self._unlike = expression.unlike
        self._guarded = expression.guarded
        self.positions = len(expression.classes)
        self._tests = [pre_tokenizers.Split(Regex(written), "removed") for written in expression.classes]
        self._known: dict[str, tuple[int, int, bool]] = {}

    def _look_up(self, character: str) -> tuple[int, int, bool]:
        matching = followed = 0
        for position, test in enumerate(self._tests):
            if not test.pre_tokenize_str(character):
                matching |= 1 << position
                followed |= self._follow[position]
        known = matching, followed, bool(matching & self._solo)
        self._known[character] = known
        return known

    def matching(self, character: str) -> int:
        """The positions that match this character, as bits."""
        return (self._known.get(character) or self._look_up(character))[0]

    def is_run(self, matching: int) -> bool:
        """Whether words cannot tell how long a run is of characters that these positions match."""
        if matching & self._counted:
            return False
        left = matching
        # Take away what nothing else in the run follows, until nothing is left or all of it goes round.
        while left:
            ends = [p for p in self._of(left) if not self._follow[p] & left & ~(1 << p)]
            if not ends:
                return False
            left &= ~sum(1 << p for p in ends)
        return True

    def is_stretch(self, kinds: Iterable[int]) -> bool:
        """Whether words with all of these kinds of characters in turns cannot tell how long they are."""
        some, every = 0, -1
        for matching in kinds:
            some, every = some | matching, every & matching
            if not matching:
                return False
        if some & (self._counted | self._unlike):
            return False
        for position in self._of(some & ~(every & self._loops)):
            followed = self._follow[position] & some
            if self._guarded >> position & 1 or (followed and followed != self._loops & 1 << position):
                return False
        return True

    def _of(self, bits: int) -> list[int]:
        return [position for position in range(self.positions) if bits >> position & 1]

    def parts(self, a: str, b: str) -> bool | None:
        """True: a boundary stands between the two. None: this step does not split there. False: it may join."""
        _, followed, a_in_word = self._known.get(a) or self._look_up(a)
        matching, _, b_in_word = self._known.get(b) or self._look_up(b)
        if followed & matching:
            return False
        return True if self._splits and (a_in_word or b_in_word) else None


class Cuts:
    """The cuts of the steps of a pre-tokenizer, one after the other.

    Attributes:
        reach: of so many characters words can tell how long a run is.
    """

    def __init__(self, words: Sequence[_Words]) -> None:
        self._words = words
        self.reach = sum(step.positions for step in words)
        self._kinds: dict[str, Kind] = {}
        self._stretches: dict[frozenset[Kind], bool] = {}

    def __call__(self, a: str, b: str) -> bool:
        """Whether a word ends between these neighbouring characters wherever they stand."""
        for step in self._words:
            parted = step.parts(a, b)
            if parted is not None:
                return parted
        return False

    def kind(self, character: str) -> Kind:
        """The same value for characters that words do not tell apart."""
        if character not in self._kinds:
            self._kinds[character] = tuple(step.matching(character) for step in self._words)
        return self._kinds[character]

    def is_stretch(self, kinds: frozenset[Kind]) -> bool:
        """Whether characters of these kinds make up a stretch."""
        if kinds not in self._stretches:
            if len(kinds) == 1:
                [kind] = kinds
                known = all(step.is_run(matching) for step, matching in zip(self._words, kind, strict=True))
            else:
                known = len(self._words) == 1 and self._words[0].is_stretch(matching for (matching,) in kinds)
            self._stretches[kinds] = known
        return self._stretches[kinds]


def cuts_of(pre_tokenizer: Mapping[str, Any]) -> Cut | None:
    """The cuts of a byte-level or Metaspace pre-tokenizer (its JSON); None where they are not known."""
    steps = list(components(pre_tokenizer))
    if [step["type"] for step in steps] == ["Metaspace"]:
        return _before_space if steps[0].get("split", True) else None
    words: list[_Words] = []
    try:
        for step in steps:
            if step["type"] == "ByteLevel":
                if step.get("use_regex", True):
                    words.append(_Words(_GPT2_WORDS))
                return Cuts(words)  # later steps see bytes, not characters, but what is apart stays apart
            words.append(_words_of(step))
    except _NotUnderstoodError:
        return None
    return Cuts(words)


def _words_of(step: Mapping[str, Any]) -> _Words:
    if step["type"] == "Digits":
        return _Words(r"\p{N}" if step["individual_digits"] else r"\p{N}+", splits=False)
    if step["type"] == "Split":
        pattern = step["pattern"]
        expression = pattern["Regex"] if "Regex" in pattern else re.escape(pattern["String"])
        keeps_words = (step["behavior"], step["invert"]) in (("Isolated", False), ("Removed", True))
        if keeps_words:
            return _Words(expression)
    raise _NotUnderstoodError(step["type"])


def _before_space(a: str, b: str) -> bool:
    return b in (" ", SPACE)
