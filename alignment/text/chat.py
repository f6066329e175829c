"""Chat templates, and the difference between a control token and its spelling in somebody's message.

A template renders a conversation to text, in which a `<|im_end|>` that the template wrote and one that a user
typed look the same. So the spellings in the messages are wrapped in two characters that occur nowhere else before
rendering. They pass through `strip`, slices and joins of the template, tell afterwards what is quoted, and are
removed. Beginnings and ends of messages that could form a spelling together with their surroundings are
wrapped too.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from alignment.errors import InvalidRequestError, one_line

# Noncharacters: Unicode guarantees that they are no text.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
_PROBE = "Tutti"
_NEVER = re.compile(r"(?!)")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered conversation; `protected` are the (start, end) of quoted control tokens, in characters."""

    text: str
    protected: tuple[tuple[int, int], ...]

    def masked(self) -> str:
        """The text with its protected spans overwritten: of the same length, all control tokens genuine."""
        pieces, done = [], 0
        for start, end in self.protected:
            pieces += [self.text[done:start], _MARKS[0] * (end - start)]
            done = end
        return "".join(pieces) + self.text[done:]


@dataclass(frozen=True, slots=True)
class Spellings:
    """How control tokens are spelled: whole, and cut short at the front or at the end."""

    whole: re.Pattern[str]
    heads: frozenset[str]
    tails: frozenset[str]
    longest: int

    @classmethod
    def of(cls, tokens: Iterable[str]) -> Spellings:
        """Prepare the search for any of `tokens`."""
        spellings = {token for token in tokens if token}
        return cls(
            whole=re.compile(_longest_of(spellings)) if spellings else _NEVER,
            heads=frozenset(token[:n] for token in spellings for n in range(1, len(token))),
            tails=frozenset(token[n:] for token in spellings for n in range(1, len(token))),
            longest=max(map(len, spellings), default=0),
        )


def _longest_of(texts: Iterable[str]) -> str:
    """A pattern for the longest of `texts` at a position, whose cost does not grow with their number."""
    by_first: dict[str, set[str]] = {}
    for text in texts:
        by_first.setdefault(text[:1], set()).add(text[1:])
    optional = by_first.pop("", None) is not None
    if not by_first:
        return ""
    branches = "|".join(re.escape(first) + _longest_of(rest) for first, rest in sorted(by_first.items()))
    return f"(?:{branches})" + ("?" if optional else "")


def render(
    hf: Any,
    messages: list[dict[str, Any]],
    *,
    control: Spellings,
    add_generation_prompt: bool,
    continue_final_message: bool,
    template_kwargs: Mapping[str, Any],
) -> Rendered:
    """Render `messages` with the template of `hf`; InvalidRequestError when the template refuses them."""
    reserved = sorted(set(template_kwargs) & _reserved_arguments())
    if reserved:
        raise InvalidRequestError(
            f"The template argument {reserved[0]} cannot be set.", param="chat_template_kwargs"
        )
    quotes = _Quotes(control, [messages, dict(template_kwargs)])
    # Templates branch on the role, so it stays as it is: the API admits known roles only.
    wrapped = [quotes.wrap(message) | {"role": message.get("role")} for message in messages]
    try:
        text: str = hf.apply_chat_template(
            wrapped,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **quotes.wrap(template_kwargs),
        )
    except Exception as error:  # a template is a program: it raises what it likes, and messages may break it
        raise InvalidRequestError(
            f"The chat template refuses this conversation: {one_line(error, 300)}.", param="messages"
        ) from error
    return quotes.unwrap(text)


def contents(
    hf: Any,
    messages: list[dict[str, Any]],
    text: str,
    *,
    add_generation_prompt: bool,
    continue_final_message: bool,
    template_kwargs: Mapping[str, Any],
) -> list[tuple[int, int] | None]:
    """Where each message's content stands in `text`, which `messages` were rendered to.

    The spans leave out white space at the ends of a content. None for a content that is empty or that the
    template changes or leaves out, and for all of them where marking them changes what the template makes of them.
    """
    values = [messages, dict(template_kwargs)]
    marks = [mark for mark in _MARKS if mark not in "".join(_strings(values))]
    cores = [message["content"].strip() for message in messages]
    found: list[tuple[int, int] | None] = [None] * len(messages)
    if len(marks) < 2:
        return found
    opening, closing = marks[:2]
    marked = [
        message | {"content": message["content"].replace(core, f"{opening}{core}{closing}", 1)}
        if core
        else message
        for message, core in zip(messages, cores, strict=True)
    ]
    try:
        rendered: str = hf.apply_chat_template(
            marked,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **template_kwargs,
        )
    except Exception:  # a template that cannot bear the marks tells nothing
        return found
    plain, *pieces = re.split(f"[{opening}{closing}]", rendered)
    at = len(plain)
    if rendered.translate({ord(opening): None, ord(closing): None}) != text:
        return found
    for number, piece in enumerate(pieces):
        if number % 2 == 0:  # inside a pair of marks
            free = (i for i, core in enumerate(cores) if core == piece and found[i] is None)
            if (message := next(free, None)) is not None:
                found[message] = (at, at + len(piece))
        at += len(piece)
    return found


def lead(hf: Any) -> bytes:
    """The white space between the generation prompt and the content of the answer, found by rendering both."""
    question = [{"role": "user", "content": _PROBE}]
    answer = [*question, {"role": "assistant", "content": _PROBE}]
    try:
        prompt: str = hf.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        whole: str = hf.apply_chat_template(answer, tokenize=False)
    except Exception:  # a template that refuses so plain a conversation has no lead that could be known
        return b""
    between, probe, _ = whole[len(prompt) :].partition(_PROBE)
    return between.encode() if probe and whole.startswith(prompt) and not between.strip() else b""


@cache
def _reserved_arguments() -> frozenset[str]:
    from transformers import PreTrainedTokenizerBase

    return frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {
        "tools",
        "documents",
        "kwargs",
    }


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


class _Quotes:
    """Wraps control tokens in messages on their way into a template, and finds them in what comes out."""

    def __init__(self, control: Spellings, values: Any) -> None:
        texts = "".join(_strings(values))
        marks = [mark for mark in _MARKS if mark not in texts]
        if len(marks) < 2:
            raise InvalidRequestError(
                "The messages contain all of Unicode's noncharacters U+FDD0 to U+FDEF: leave some out.",
                param="messages",
            )
        self._control = control
        self._opening, self._closing = marks[:2]
        self._wrapped: set[str] = set()

    def wrap(self, value: Any) -> Any:
        """A copy of `value`, wrapped in every string within it."""
        if isinstance(value, str):
            return self._wrap_text(value)
        if isinstance(value, Mapping):
            return {key: self.wrap(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.wrap(inner) for inner in value]
        return value

    def _wrap_text(self, text: str) -> str:
        """Wrap what could be read as a control token.

        That is every whole spelling, the end of one where the text begins, and the beginning of one where it
        ends (white space aside, which templates strip).
        """
        control = self._control
        if not text.strip():
            return text
        start, end = len(text) - len(text.lstrip()), len(text.rstrip())
        longest = min(control.longest, end - start)
        head = next((n for n in range(longest, 0, -1) if text[start : start + n] in control.tails), 0)
        tail = next((n for n in range(longest, 0, -1) if text[end - n : end] in control.heads), 0)
        if head + tail > end - start:
            return text[:start] + self._quote(text[start:end]) + text[end:]
        front, back = start + head, end - tail
        body = control.whole.sub(lambda spelling: self._quote(spelling[0]), text[front:back])
        return text[:start] + self._quote(text[start:front]) + body + self._quote(text[back:end]) + text[end:]

    def _quote(self, text: str) -> str:
        if not text:
            return ""
        self._wrapped.add(text)
        return f"{self._opening}{text}{self._closing}"

    def unwrap(self, text: str) -> Rendered:
        """Take the marks out of a rendered text. A pair that a template has torn apart protects nothing."""
        pieces = re.split(f"([{self._opening}{self._closing}])", text)
        clean: list[str] = []
        protected: list[tuple[int, int]] = []
        length = 0
        for number in range(0, len(pieces), 2):  # every other piece is a mark
            piece = pieces[number]
            clean.append(piece)
            around = (pieces[number - 1], pieces[number + 1]) if 0 < number < len(pieces) - 1 else None
            if around == (self._opening, self._closing) and piece in self._wrapped:
                protected.append((length, length + len(piece)))
            length += len(piece)
        return Rendered("".join(clean), tuple(protected))
