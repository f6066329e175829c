"""Constraint: what may be sampled next in one sequence, as a bitmask over the pivot's ids.

Three kinds can be combined, and a token must satisfy all: a grammar, a list of admitted ids, and words that the
text must not contain. Words are compared as bytes, so that no cut of a word into tokens gets past them. Where a
budget of thoughts is spent, their closing tag comes, whatever lists and words say.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

import llguidance
import llguidance.numpy
import numpy as np
from numpy.typing import NDArray

from alignment.errors import InvalidRequestError
from fusion.core import SamplingConstraint
from fusion.sequence.grammar import Grammar
from fusion.sequence.grammar_table import Bits, GrammarTable
from fusion.sequence.thoughts import Thoughts

_executor = llguidance.LLExecutor()


class BadWords:
    """Texts that must not occur in an answer, over the surfaces of a vocabulary.

    Attributes:
        inside: ids whose surface alone contains a word.
    """

    def __init__(self, words: Sequence[str], table: GrammarTable) -> None:
        given = [word.encode() for word in dict.fromkeys(words) if word]
        # What holds another word occurs only with that one.
        self.words = tuple(one for one in given if not any(other in one and other != one for other in given))
        self.longest = max(map(len, self.words), default=0)
        # All is looked for here and not in a round, which other sequences would wait for.
        ids, surfaces = table.by_surface
        most = max(map(len, surfaces))
        short = [word for word in self.words if len(word) <= most]
        hits = [any(word in surface for word in short) for surface in surfaces]
        self.inside: NDArray[np.int64] = ids[np.array(hits, bool)]
        self._completing: defaultdict[bytes, list[NDArray[np.int64]]] = defaultdict(list)  # by what comes before
        for word in self.words:
            for size in range(max(1, len(word) - most), len(word)):
                rest = word[size:]
                start = bisect_left(surfaces, rest)
                end = bisect_left(surfaces, rest + b"\xff", start)  # 0xFF is in no surface
                if start < end:
                    self._completing[word[:size]].append(ids[start:end])
        self._sizes = sorted({len(begun) for begun in self._completing})

    def after(self, tail: bytes) -> NDArray[np.int64]:
        """Ids that complete a word whose beginning is the end of `tail`."""
        found = [self.inside]
        for size in self._sizes:
            if size > len(tail):
                break
            found += self._completing.get(tail[-size:], ())
        return np.concatenate(found)

    def broken_by(self, tail: bytes, surface: bytes) -> bool:
        """Return whether `surface` after `tail` completes a word."""
        text = tail + surface
        return any(text.find(word, max(0, len(tail) - len(word) + 1)) >= 0 for word in self.words)


class Constraint:
    """The state of one sequence's constraint. `take` moves it on, `back` moves it back, `copy` forks it."""

    def __init__(
        self,
        table: GrammarTable,
        *,
        grammar: Grammar | None = None,
        allowed_ids: Sequence[int] | None = None,
        bad_words: BadWords | None = None,
        marks: Collection[int] = (),
        stops: Collection[int] = (),
        thoughts: Thoughts | None = None,
    ) -> None:
        """Begin at the beginning.

        Args:
            table: the pivot's vocabulary.
            grammar: of the text.
            allowed_ids: nothing else comes, but for ends under a grammar.
            bad_words: texts that must not occur.
            marks: special tokens that may come, where no grammar or list says which may.
            stops: special tokens at which the request wants to stop, likewise.
            thoughts: what has a budget; a grammar that has no room for the closing tag wins.
        """
        self._table = table
        self._matcher = table.compile(grammar) if grammar else None
        self._param = grammar.param if grammar else None
        self._allowed: Bits | None = None if allowed_ids is None else table.bits_of(allowed_ids)
        self._special = frozenset([*table.end_ids, *marks, *stops])  # that may come, where text may
        self._free = table.text_bits | table.bits_of([*self._special])
        self._bad = bad_words
        self._taken: list[int] = []
        shaped = grammar is not None or allowed_ids is not None or bad_words is not None
        self.is_open = not shaped and not marks
        self.admits_any_text = not shaped and thoughts is None
        self._thoughts = [] if thoughts is None else [thoughts]  # before each of the taken, and now
        self._bits: Bits | None = None
        self.ended = False

    def bits(self) -> Bits:
        """The ids that may come next, uint8 [V / 8], a bit each in little order; not to be changed.

        End tokens are among them only where the grammar may end, or where nothing else is left.

        Raises:
            InvalidRequestError: the grammar needs more work in one token than the limits allow.
        """
        if self._bits is None:
            words = self._table.words(1)
            if self._matcher is not None and not self.ended:
                llguidance.numpy.fill_next_token_bitmask(self._matcher, words)
            self._bits = self._finished(words[0].view(np.uint8))
        return self._bits

    def mask(self) -> NDArray[np.bool_]:
        """The same as bool [V]."""
        unpacked = np.unpackbits(self.bits(), bitorder="little", count=self._table.width)
        return unpacked.view(np.bool_)

    def allowed(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return a bool for each of `ids` (any shape, padded with -1): True where it may come next."""
        allowed: NDArray[np.bool_] = (self.bits()[ids >> 3] >> (ids & 7) & 1).astype(np.bool_) & (ids >= 0)
        return allowed

    def admits(self, token: int) -> bool:
        """Return whether a token may come next."""
        return 0 <= token < self._table.width and bool(self.bits()[token >> 3] >> (token & 7) & 1)

    def _finished(self, bits: Bits) -> Bits:
        """A grammar's bare bits with everything else that applies; changes and returns them."""
        ends = self._table.end_bits
        if self.ended:
            bits[:] = ends
            return bits
        if due := self._due():
            bits[:] = self._table.bits_of(due[:1])
            return bits
        if self._matcher is None:
            bits[:] = self._free if self._allowed is None and not self.is_open else 0xFF
        else:
            self._check()
            self._table.spread(bits)
            bits &= ~ends
            if self._matcher.is_accepting():
                bits |= ends
        if self._allowed is not None:  # with a grammar ends are admitted too, or it could never end
            bits &= self._allowed if self._matcher is None else self._allowed | ends
        if self._bad is not None:
            ids = self._bad.after(self._tail())
            np.bitwise_and.at(bits, ids >> 3, ~(1 << (ids & 7)).astype(np.uint8))
        if not bits.any():
            bits |= ends
        return bits

    def take(self, token: int) -> None:
        """Move on by one token.

        Raises:
            ValueError: the token is not admitted here.
            InvalidRequestError: the grammar needs more work in one token than the limits allow.
        """
        if token in self._table.end_ids:
            if self.ended or not (self.accepting or self.admits(token)):
                raise ValueError(f"token {token} ends the answer where it must go on")
            self.ended = True
        else:
            if not self._admits(token) or self.ended:
                raise ValueError(f"token {token} is not admitted here")
            if self._matcher is not None and not self._matcher.consume_token(self._table.original(token)):
                if "satisfy the grammar" not in self._matcher.get_error():
                    self._check()
                raise ValueError(f"token {token} is not admitted here")
        self._taken.append(token)
        if self._thoughts:
            self._thoughts.append(self._thoughts[-1].after(token))
        self._bits = None

    def back(self, count: int) -> None:
        """Take the last `count` tokens back."""
        for _ in range(count):
            token = self._taken.pop()
            if self._thoughts:
                self._thoughts.pop()
            if self.ended:
                self.ended = False  # the matcher has not seen the end token
            elif self._matcher is not None and not self._matcher.rollback(1):
                raise ValueError(f"token {token} cannot be taken back")
        self._bits = None

    def fits(self, ids: Sequence[int]) -> int:
        """Return the number of `ids`, from the first, that may come next in turn. The state stays as it is."""
        count = 0
        try:
            for token in ids:
                admitted = (
                    not self.ended and self.accepting and (self._matcher is not None or self.admits(token))
                    if token in self._table.end_ids
                    else self._matcher is None or self._matcher.validate_tokens([self._table.original(token)]) == 1
                )
                if not admitted or self.ended or not self._admits(token):
                    break
                self.take(token)
                count += 1
        finally:
            self.back(count)
        return count

    def forced(self) -> list[int]:
        """Tokens that must come next whatever is sampled, in their canonical spelling; often none."""
        if not self._thoughts:
            return self._forced_by_grammar()
        count = len(self._taken)
        try:
            for _ in range(3):  # the rest of an opening tag, the closing one, what the grammar forces after it
                for token in self._due() or self._forced_by_grammar():
                    if not self._admits(token):
                        break
                    self.take(token)
            return self._taken[count:]
        finally:
            self.back(len(self._taken) - count)

    def _due(self) -> list[int]:
        """The tokens that close thoughts whose budget is spent."""
        due = self._thoughts[-1].due() if self._thoughts and not self.ended else []
        if due and self._matcher is not None and self._matcher.validate_tokens(due) < len(due):
            return []
        return due

    def _forced_by_grammar(self) -> list[int]:
        if self._matcher is None or self.ended:
            return []
        tokens = self._matcher.compute_ff_tokens()
        if not tokens:
            return []
        if self._allowed is None and self._bad is None:
            return tokens[: self._matcher.validate_tokens(tokens)]
        return tokens[: self.fits(tokens)]

    def fallback(self) -> int:
        """A token to go on with where no member proposed any that is admitted.

        The forced one; else an end token where the answer may end; else the first of the shortest admitted.
        """
        if forced := self.forced():
            return forced[0]
        for end in self._table.end_ids:
            if self.admits(end):
                return end
        return int(min(np.flatnonzero(self.mask()), key=lambda id: len(self._table.surfaces[id])))

    @property
    def accepting(self) -> bool:
        """True where the answer may end here."""
        return not self._due() and (self._matcher is None or self._matcher.is_accepting())

    @property
    def stopped(self) -> bool:
        """True where the answer must end here: it has ended, or the grammar admits nothing more."""
        return self.ended or (self._matcher is not None and self._matcher.is_stopped())

    def copy(self) -> Constraint:
        """An independent constraint in the same state."""
        other = object.__new__(Constraint)
        other.__dict__.update(self.__dict__)
        other._taken, other._thoughts = list(self._taken), list(self._thoughts)
        other._matcher = self._matcher.deep_copy() if self._matcher is not None else None
        return other

    def _admits(self, token: int) -> bool:
        """Return whether everything but the grammar admits the token."""
        table = self._table
        if not 0 <= token < table.width:
            return False
        if due := self._due():
            return token == due[0]
        if self.is_open:
            return True
        listed = self._allowed is None or self._allowed[token >> 3] >> (token & 7) & 1
        if not listed and token not in table.end_ids:
            return False
        if self._allowed is None and self._matcher is None and not table.text_ids[token]:
            return token in self._special
        return self._bad is None or not self._bad.broken_by(self._tail(), table.surfaces[token])

    def _tail(self) -> bytes:
        """As much of the end of the text as a bad word may begin in."""
        if self._bad is None or self._bad.longest < 2:
            return b""
        tail = b""
        for token in reversed(self._taken):
            if len(tail) >= self._bad.longest - 1:
                break
            tail = self._table.surfaces[token] + tail
        return tail[-(self._bad.longest - 1) :]

    def _check(self) -> None:
        if self._matcher is not None and self._matcher.is_error():
            raise InvalidRequestError(
                f"{self._param}: the grammar became too complex to enforce; make it smaller.", param=self._param
            )


def fill(constraints: Iterable[SamplingConstraint]) -> None:
    """Compute the bits of several sequences, in parallel and without Python's lock."""
    ours = [each for each in constraints if isinstance(each, Constraint)]
    todo = [each for each in ours if each._bits is None and each._matcher is not None and not each.ended]
    tables = {id(each._table): each._table for each in todo}
    for key, table in tables.items():
        rows = [each for each in todo if id(each._table) == key]
        if len(rows) < 2:
            continue
        words = table.words(len(rows))
        pairs = [(each._matcher, row) for row, each in enumerate(rows) if each._matcher is not None]
        llguidance.numpy.fill_next_token_bitmask_par(_executor, pairs, words)
        for each, bits in zip(rows, words.view(np.uint8), strict=True):
            each._bits = each._finished(bits)
