"""Constraint: what may be sampled next in one sequence, as a mask over the pivot's ids.

Three kinds can be combined, and a token must satisfy all: a grammar, a list of admitted ids, and words that the
text must not contain. Words are compared as bytes, so that no cut of a word into tokens gets past them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property

import llguidance
import llguidance.numpy
import numpy as np
from numpy.typing import NDArray

from alignment.errors import InvalidRequestError
from fusion.sequence.grammar import Grammar, GrammarTable

_executor = llguidance.LLExecutor()


class BadWords:
    """Texts that must not occur in an answer, over the surfaces of a vocabulary."""

    def __init__(self, words: Sequence[str], table: GrammarTable) -> None:
        self.words = tuple(word.encode() for word in dict.fromkeys(words) if word)
        self.longest = max(map(len, self.words), default=0)
        order = sorted(range(len(table.surfaces)), key=table.surfaces.__getitem__)
        self._ids = np.array(order)
        self._sorted = [table.surfaces[id] for id in order]

    @cached_property
    def inside(self) -> NDArray[np.int64]:
        """Ids whose surface alone contains a word."""
        hits = [any(word in surface for word in self.words) for surface in self._sorted]
        found: NDArray[np.int64] = self._ids[np.array(hits, bool)]
        return found

    def after(self, tail: bytes) -> NDArray[np.int64]:
        """Ids that complete a word whose beginning is the end of `tail`."""
        ranges = [self.inside]
        for word in self.words:
            for size in range(1, min(len(word), len(tail) + 1)):
                if tail.endswith(word[:size]):
                    rest = word[size:]
                    start = bisect_left(self._sorted, rest)
                    # 0xFF is in no surface
                    ranges.append(self._ids[start : bisect_left(self._sorted, rest + b"\xff", start)])
        return np.concatenate(ranges)

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
    ) -> None:
        self._table = table
        self._matcher = table.compile(grammar) if grammar else None
        self._param = grammar.param if grammar else None
        self._allowed: NDArray[np.bool_] | None = None
        if allowed_ids is not None:
            self._allowed = np.zeros(table.width, bool)
            self._allowed[list(allowed_ids)] = True
        self._bad = bad_words
        self._taken: list[int] = []
        self._mask: NDArray[np.bool_] | None = None
        self.ended = False

    def mask(self) -> NDArray[np.bool_]:
        """The ids that may come next, bool [V]; not to be changed.

        End tokens are among them only where the grammar may end, or where nothing else is left.

        Raises:
            InvalidRequestError: the grammar needs more work in one token than the limits allow.
        """
        if self._mask is None:
            bits = np.zeros((1, (self._table.width + 31) // 32), np.int32)
            if self._matcher is not None and not self.ended:
                llguidance.numpy.fill_next_token_bitmask(self._matcher, bits)
            self._mask = self._finished(_unpacked(bits, self._table.width)[0])
        return self._mask

    def allowed(self, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return a bool for each of `ids` (any shape, padded with -1): True where it may come next."""
        mask: NDArray[np.bool_] = self.mask()[np.maximum(ids, 0)] & (ids >= 0)
        return mask

    def _finished(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A grammar's bare mask, bool [V], with everything else that applies; changes and returns it."""
        ends = list(self._table.end_ids)
        if self.ended:
            mask[:] = False
            mask[ends] = True
            return mask
        if self._matcher is None:
            mask[:] = self._table.text_ids if self._allowed is None else True
            mask[ends] = True
        else:
            self._check()
            self._table.spread(mask)
            mask[ends] = self._matcher.is_accepting()
        if self._allowed is not None:
            admitted = self._allowed.copy()
            if self._matcher is not None:
                admitted[ends] = True  # else a grammar could never end
            mask &= admitted
        if self._bad is not None:
            mask[self._bad.after(self._tail())] = False
        if not mask.any():
            mask[ends] = True
        return mask

    def take(self, token: int) -> None:
        """Move on by one token.

        Raises:
            ValueError: the token is not admitted here.
            InvalidRequestError: the grammar needs more work in one token than the limits allow.
        """
        if token in self._table.end_ids:
            if self.ended or not (self.accepting or self.mask()[token]):
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
        self._mask = None

    def back(self, count: int) -> None:
        """Take the last `count` tokens back."""
        for _ in range(count):
            token = self._taken.pop()
            if self.ended:
                self.ended = False  # the matcher has not seen the end token
            elif self._matcher is not None and not self._matcher.rollback(1):
                raise ValueError(f"token {token} cannot be taken back")
        self._mask = None

    def fits(self, ids: Sequence[int]) -> int:
        """Return the number of `ids`, from the first, that may come next in turn. The state stays as it is."""
        count = 0
        try:
            for token in ids:
                admitted = (
                    not self.ended and self.accepting and (self._matcher is not None or bool(self.mask()[token]))
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
        if self._matcher is None or self.ended:
            return []
        tokens = self._matcher.compute_ff_tokens()
        return tokens[: self.fits(tokens)]

    def forced_bytes(self) -> bytes:
        """The text that must come next; at least as long as that of the `forced` tokens."""
        if self._matcher is None or self.ended:
            return b""
        return bytes(self._matcher.compute_ff_bytes())

    @property
    def accepting(self) -> bool:
        """True where the answer may end here."""
        return self._matcher is None or self._matcher.is_accepting()

    @property
    def stopped(self) -> bool:
        """True where the answer must end here: it has ended, or the grammar admits nothing more."""
        return self.ended or (self._matcher is not None and self._matcher.is_stopped())

    def copy(self) -> Constraint:
        """An independent constraint in the same state."""
        other = object.__new__(Constraint)
        other.__dict__.update(self.__dict__)
        other._taken = list(self._taken)
        other._matcher = self._matcher.deep_copy() if self._matcher is not None else None
        return other

    def _admits(self, token: int) -> bool:
        """Return whether everything but the grammar admits the token."""
        table = self._table
        if not 0 <= token < table.width:
            return False
        if self._allowed is not None and not self._allowed[token] and token not in table.end_ids:
            return False
        if self._allowed is None and self._matcher is None and not table.text_ids[token]:
            return token in table.end_ids
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


def fill_masks(constraints: Sequence[Constraint]) -> NDArray[np.bool_]:
    """The masks of sequences over one table, bool [n, V], computed in parallel and without Python's lock."""
    table = constraints[0]._table
    bits = np.zeros((len(constraints), (table.width + 31) // 32), np.int32)
    todo = [
        (constraint._matcher, row)
        for row, constraint in enumerate(constraints)
        if constraint._matcher is not None and constraint._mask is None and not constraint.ended
    ]
    if todo:
        llguidance.numpy.fill_next_token_bitmask_par(_executor, todo, bits)
    masks = _unpacked(bits, table.width)
    for row, constraint in enumerate(constraints):
        if constraint._mask is None:
            constraint._mask = constraint._finished(masks[row])
        else:
            masks[row] = constraint._mask
    return masks


def _unpacked(bits: NDArray[np.int32], width: int) -> NDArray[np.bool_]:
    unpacked = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little", count=width)
    return unpacked.view(np.bool_)
