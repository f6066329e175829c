"""Thoughts: how far an answer is in what it thinks, and the tag that ends that once a budget is spent."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from alignment.errors import UnsupportedError
from alignment.text.characters import beginning_at_the_end
from fusion.sequence.grammar_table import GrammarTable

_LONGEST_REST = 3  # of a character that has begun, in bytes and so in tokens at most


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on the tokens that an answer may think, but for those that complete a character.

    Attributes:
        tags: the texts that thoughts stand between, at the beginning of an answer.
        tokens: the most tokens between them, in the pivot's.
        begun: the thoughts that the prompt ends inside of, which count; None where it does not.
    """

    tags: tuple[str, str]
    tokens: int
    begun: str | None = None

    def of(self, table: GrammarTable) -> Thoughts:
        """The state at the beginning of an answer in this vocabulary.

        Raises:
            UnsupportedError: the vocabulary cannot spell the closing tag.
        """
        opening, closing = (tag.encode() for tag in self.tags)
        marks = {id: tag.encode() for tag in self.tags if (id := table.special(tag)) is not None}
        begun = self.begun.strip() if self.begun else ""
        left = self.tokens - (len(table.tokens_of(begun)) if begun else 0)
        state: Literal["before", "inside"] = "before" if self.begun is None else "inside"
        spelled = tuple(table.tokens_of(self.tags[1]))
        thoughts = Thoughts(table, opening, closing, spelled, marks, max(left, 0), state)
        if b"".join(map(thoughts.surface, spelled)) != closing:
            raise UnsupportedError(
                f"thinking_token_budget cannot be kept: the pivot has no tokens for {self.tags[1]}; leave it out.",
                param="thinking_token_budget",
            )
        return thoughts


@dataclass(frozen=True, slots=True)
class Thoughts:
    """The state after some tokens of an answer; `after` is the one after another token.

    Attributes:
        table: the pivot's vocabulary.
        opening, closing: the tags.
        spelled: the closing one in tokens.
        marks: those of the tags that are special tokens, by id.
        left: tokens of the budget that are left; below 0 those that came after it.
        state: where the answer is.
        held: the end of the text, which may be the beginning of a tag.
    """

    table: GrammarTable = field(repr=False)
    opening: bytes
    closing: bytes
    spelled: tuple[int, ...]
    marks: dict[int, bytes]
    left: int
    state: Literal["before", "inside", "after"]
    held: bytes = b""

    def surface(self, token: int) -> bytes:
        """The text of a token, of a tag's as well."""
        return self.marks.get(token) or self.table.surfaces[token]

    def after(self, token: int) -> Thoughts:
        """The state after one more token. That which completes the opening tag counts for nothing."""
        text = self.held + self.surface(token)
        match self.state:
            case "before":
                text = _left_stripped(text)
                if text.startswith(self.opening):
                    return self._inside(text[len(self.opening) :], self.left)
                return replace(self, held=text, state="before" if self.opening.startswith(text) else "after")
            case "inside":
                return self._inside(text, max(self.left - 1, -_LONGEST_REST))
            case "after":
                return self

    def _inside(self, text: bytes, left: int) -> Thoughts:
        if self.closing in text:
            return replace(self, state="after", held=b"")
        return replace(self, state="inside", held=text[-max(len(self.closing), _LONGEST_REST) :], left=left)

    def due(self) -> list[int]:
        """The tokens of the closing tag, or of what is missing of it, once the budget is spent; else none.

        A character that has begun is waited for, unless its bytes do not come.
        """
        if self.state != "inside" or self.left > 0:
            return []
        surfaces = [self.table.surfaces[token] for token in self.spelled]
        ends = [n for n in range(len(surfaces)) if self.held.endswith(b"".join(surfaces[:n]))]
        if self.left > -_LONGEST_REST and not ends[-1] and beginning_at_the_end(self.held):
            return []  # the tag would cut a character in two
        if len(self.spelled) == 1:
            return list(self.spelled)
        tag = self.closing.decode()
        there = max(n for n in range(len(tag)) if self.held.endswith(tag[:n].encode()))
        if len(tag[:there].encode()) > len(b"".join(surfaces[: ends[-1]])):  # it is begun in other tokens
            return self.table.tokens_of(tag[there:])
        return list(self.spelled[ends[-1] :])


def _left_stripped(text: bytes) -> bytes:
    """The text without white space at its beginning, that of other scripts only where all of it is whole."""
    try:
        return text.decode().lstrip().encode()
    except UnicodeDecodeError:
        return text.lstrip()
