"""Conversations as text, and which characters of it the template wrote.

A template renders a conversation to text, in which a `<|im_end|>` that the template wrote and one that a user
typed look the same; and a template that deletes parts of a message can join the rest into one. So a conversation
is rendered a second time with the characters of its messages shaded: those that control tokens are spelled in are
replaced by stand-ins from a private-use area of Unicode. Where the two renderings differ, the text is the
messages'. White space stays, since templates trim it, and so do texts that the template's source quotes, such as
`</think>`, since it may search for them. Where a template treats shaded messages differently, only signs are
shaded.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from os.path import commonprefix
from typing import Any

from alignment.errors import InvalidRequestError
from alignment.text.template import Messages, Template

# Noncharacters: Unicode guarantees that they are no text.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
_PRIVATE = 0xF0000
_NEVER = re.compile(r"(?!)")
_NAME = re.compile(r"[a-z_]*")


@cache
def _compatible() -> tuple[str, ...]:
    """The characters that Unicode calls another way to write others, but for white space."""
    every = (chr(code) for code in range(0x80, 0xFFFE) if not 0xD800 <= code < 0xE000)
    return tuple(c for c in every if not c.isspace() and unicodedata.normalize("NFKC", c) != c)


class _CrossedOut(dict[int, int]):
    """A table for `str.translate` that makes every character an x, and keeps none of them."""

    def __missing__(self, code: int) -> int:
        return ord("x")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered conversation.

    Attributes:
        text: the conversation.
        shaded: the same with shaded messages; None where that cannot be had.
        blank: a character that stands for no text and occurs nowhere in the messages.
        options: arguments of `Template.render` that it was rendered with.
        is_sure: whether letters are shaded as well as signs, so that nothing a template makes of messages can look
            like its own.
        crossed_out: where that is not so, a conversation of messages as long that say nothing; None where the
            template refuses it.
    """

    text: str
    shaded: str | None
    blank: str
    options: Mapping[str, Any]
    is_sure: bool = True
    crossed_out: str | None = None

    def is_quoted(self, start: int, end: int) -> bool:
        """Return whether any of these characters came from a message."""
        return self.shaded is not None and self.text[start:end] != self.shaded[start:end]


@dataclass(frozen=True, slots=True)
class Shades:
    """Rules for shading messages: which characters are replaced, and which texts are left as they are."""

    tables: tuple[Mapping[int, int], ...]
    kept: re.Pattern[str]
    sought: re.Pattern[str]
    spellings: frozenset[str]

    @classmethod
    def of(
        cls, spellings: Iterable[str], literals: Iterable[str], normalized: Callable[[str], str] | None = None
    ) -> Shades:
        """Shades for control tokens of these spellings, in a template that quotes these literals.

        `normalized` is what the tokenizer makes of a character before it reads it, where that may be another one:
        a full-width sign say, which is shaded like the one that it becomes.
        """
        tokens = frozenset(token for token in spellings if token)
        characters = {c for token in tokens for c in token if not c.isspace() and ord(c) < 0xFFFE}
        if normalized is not None:
            characters |= {c for c in _compatible() if not characters.isdisjoint(normalized(c))}
        signs = {c for c in characters if not c.isalnum()}
        everything = "\n".join(tokens)
        quoted = {literal for literal in literals if literal.strip()}
        sought = {literal for literal in quoted if any(token in literal for token in tokens)}
        kept = {literal for literal in quoted - sought if literal not in everything}
        return cls(
            tables=tuple({ord(c): _PRIVATE + ord(c) for c in some} for some in (characters, signs)),
            kept=_any_of(kept),
            sought=_any_of(kept | sought),
            spellings=tokens,
        )

    def shade(self, value: Any, table: Mapping[int, int], kept: re.Pattern[str], under: str = "") -> Any:
        """A copy of `value`, shaded in every string within it but for the names of roles and types.

        Keys that clients choose are shaded as well: those of arguments and of a schema's properties, and those
        that are no identifiers, as which templates look parts of a message up.
        """
        if isinstance(value, str):
            pieces, done = [], 0
            for kept_text in kept.finditer(value):
                pieces += [value[done : kept_text.start()].translate(table), kept_text[0]]
                done = kept_text.end()
            return "".join(pieces) + value[done:].translate(table)
        if isinstance(value, Mapping):
            return {
                self.shade(k, table, kept) if _is_chosen(k, under) else k: v
                if _is_name(k, v) and under not in _CHOSEN
                else self.shade(v, table, kept, _under(k, under))
                for k, v in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.shade(inner, table, kept, under) for inner in value]
        return value

    def could_spell(self, texts: str) -> bool:
        """Return whether deleting some characters of `texts` can leave a control token."""
        return any(_is_subsequence(token, texts) for token in self.spellings)


_CHOSEN = ("arguments", "properties")
"""Keys whose mappings have keys that the client chose: of arguments at any depth, of properties the names."""


def _under(key: Any, under: str) -> str:
    """Whose mapping the value of a key is, as `_is_chosen` is told."""
    if under == "arguments":
        return under
    return key if key in _CHOSEN and under != "properties" else ""


def _is_chosen(key: Any, under: str) -> bool:
    return isinstance(key, str) and (under in _CHOSEN or not key.isidentifier())


def _is_name(key: Any, value: Any) -> bool:
    return key in ("role", "type") and isinstance(value, str) and bool(_NAME.fullmatch(value))


def _is_subsequence(token: str, text: str) -> bool:
    at = 0
    for character in token:
        at = text.find(character, at) + 1
        if not at:
            return False
    return True


def _any_of(texts: Collection[str]) -> re.Pattern[str]:
    return re.compile(_longest_of(texts)) if texts else _NEVER


def _longest_of(texts: Iterable[str]) -> str:
    """A pattern for the longest of `texts` at a position, whose cost does not grow with their number.

    It nests where texts part, not with every character: templates quote texts of a thousand characters.
    """
    by_first: dict[str, list[str]] = {}
    for text in texts:
        by_first.setdefault(text[:1], []).append(text)
    optional = by_first.pop("", None) is not None
    if not by_first:
        return ""
    branches = []
    for _, some in sorted(by_first.items()):
        common = commonprefix(some)  # noqa: RUF071 - of texts, not of paths
        branches.append(re.escape(common) + _longest_of({text[len(common) :] for text in some}))
    return f"(?:{'|'.join(branches)})" + ("?" if optional else "")


def render(
    template: Template,
    messages: Messages,
    *,
    shades: Shades,
    add_generation_prompt: bool,
    continue_final_message: bool,
    template_kwargs: Mapping[str, Any],
    require: Callable[[str], object],
) -> Rendered:
    """Render `messages`; InvalidRequestError when the template refuses them, or `require` their text."""
    options = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
    given: dict[str, Any] = {**options, "template_kwargs": template_kwargs}
    text = template.render(messages, **given)
    require(text)
    together = "".join(strings([messages, dict(template_kwargs)]))
    free = [mark for mark in _MARKS if mark not in together]
    if len(free) < 2:
        raise InvalidRequestError(
            "The messages contain all of Unicode's noncharacters U+FDD0 to U+FDEF: leave some out.",
            param="messages",
        )
    keeping = [shades.kept]
    if not any(token in text for token in shades.spellings if token in together):
        keeping.append(shades.sought)  # else the template may also write what it looks for

    def rendered(table: Mapping[int, int], kept: re.Pattern[str]) -> str | None:
        try:
            return template.render(
                shades.shade(messages, table, kept),
                **options,
                template_kwargs=shades.shade(template_kwargs, table, kept),
            )
        except InvalidRequestError:
            return None

    for kept in keeping:
        for table in shades.tables:
            shaded = rendered(table, kept)
            if shaded is None or len(shaded) != len(text) or shaded.translate(table) != text.translate(table):
                continue
            if table is shades.tables[0]:
                return Rendered(text, shaded, free[0], given)
            return Rendered(text, shaded, free[0], given, False, rendered(_CrossedOut(), shades.kept))
    return Rendered(text, None, free[0], given, False, rendered(_CrossedOut(), shades.kept))


def strings(value: Any, under: str = "") -> Iterator[str]:
    """Every text within a conversation, in order, and every key that the client chose."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if _is_chosen(key, under):
                yield key
            yield from strings(inner, _under(key, under))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings(inner, under)


def contents(template: Template, messages: Messages, rendered: Rendered) -> list[tuple[int, int] | None]:
    """Return the span of each message's content in the rendering of `messages`.

    The spans leave out white space at the ends of a content. None for a content that is empty or that the
    template changes or leaves out, and for all of them where marking them changes what the template makes of them.
    """
    together = "".join(strings([messages, dict(rendered.options["template_kwargs"])]))
    opening, closing = [mark for mark in _MARKS if mark not in together][:2]  # `render` requires them
    given = [message.get("content") for message in messages]
    cores = [content.strip() if isinstance(content, str) else "" for content in given]
    found: list[tuple[int, int] | None] = [None] * len(messages)
    marked = [
        message | {"content": message["content"].replace(core, f"{opening}{core}{closing}", 1)}
        if core
        else message
        for message, core in zip(messages, cores, strict=True)
    ]
    try:
        shown = template.render(marked, **rendered.options)
    except InvalidRequestError:  # a template that refuses the marks gives no spans
        return found
    plain, *pieces = re.split(f"[{opening}{closing}]", shown)
    at = len(plain)
    if shown.translate({ord(opening): None, ord(closing): None}) != rendered.text:
        return found
    for number, piece in enumerate(pieces):
        if number % 2 == 0:  # inside a pair of marks
            free = (i for i, core in enumerate(cores) if core == piece and found[i] is None)
            if (message := next(free, None)) is not None:
                found[message] = (at, at + len(piece))
        at += len(piece)
    return found
