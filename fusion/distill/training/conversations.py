"""Conversations to learn from: read from JSON lines, and in the tokens of a model with its answers located."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from alignment.errors import ConfigError, InvalidRequestError
from alignment.text.tokenizer import Tokenizer
from fusion.distill.training.settings import Data

Message = dict[str, str]
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Conversations:
    """The conversations that are learned from.

    Attributes:
        messages: of each conversation; every one has an answer.
        without_answer: how many were left out.
        digest: sha256 of the files and of what was asked of them.
    """

    messages: list[list[Message]]
    without_answer: int
    digest: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation in a model's tokens.

    Attributes:
        ids: all of them.
        answers: (start, end) of each answer among them, the token that ends it included.
    """

    ids: list[int]
    answers: list[tuple[int, int]]

    @property
    def positions(self) -> list[int]:
        """The positions whose next token is learned: those of the answers, each one earlier."""
        return [at - 1 for start, end in self.answers for at in range(start, end)]


def read_conversations(data: Data) -> Conversations:
    """All conversations with an answer.

    A line is `{"messages": [{"role", "content"}...]}`, or `{"prompt", "answer"}` (or `"reference"`) for a single
    exchange. Conversations without an answer are left out, what follows the last answer as well.

    Raises:
        ConfigError: names the file and the line, or says that no answer was found.
    """
    digest = hashlib.sha256(f"{data.limit}".encode())
    found: list[list[Message]] = []
    without = 0
    for path in data.files:
        for where, line in _lines(path, digest):
            if data.limit is not None and len(found) >= data.limit:
                break
            messages = _messages(line, where)
            last = max(
                (i for i, m in enumerate(messages) if m["role"] == "assistant" and m["content"].strip()),
                default=-1,
            )
            if last < 0:
                without += 1
            else:
                found.append(messages[: last + 1])
    if not found:
        files = ", ".join(map(str, data.files))
        raise ConfigError(
            f"{files}: no conversation has an answer to learn from; add messages of the role assistant."
        )
    return Conversations(found, without, digest.hexdigest())


def encode(tokenizer: Tokenizer, stops: Sequence[int], messages: list[Message], max_length: int) -> Encoded | None:
    """A conversation in a model's tokens; None where it is too long or an answer cannot be told from the rest.

    An answer is what follows the tokens of the conversation before it with a generation prompt, up to and with
    the first of `stops`; so a template has to write a conversation as a server would have built it up. Empty
    answers are read, and not learned.
    """
    try:
        ids = tokenizer.encode_chat(list(messages), add_generation_prompt=False)
        if len(ids) > max_length:
            return None
        answers = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant" or not message["content"].strip():  # of which only the end is left
                continue
            prompt = tokenizer.encode_chat(list(messages[:turn]), add_generation_prompt=True)
            start = len(prompt)
            if not start or ids[:start] != prompt:
                return None
            end = next((at for at in range(start, len(ids)) if ids[at] in stops), None)
            if end is None:
                return None
            answers.append((start, end + 1))
    except InvalidRequestError:
        return None
    return Encoded(ids, answers)


def held_out(count: int, share: float) -> list[bool]:
    """Return which of `count` conversations are held out: a share, evenly spread; at least one if above 0."""
    ends = [int(number * share + 1e-9) for number in range(count + 1)]
    marked = [after > before for before, after in pairwise(ends)]
    if count > 1 and share > 0 and not any(marked):
        marked[-1] = True
    return marked


def _lines(path: Path, digest: Any) -> Iterator[tuple[str, str]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                digest.update(line)
                if line.strip():
                    yield f"{path}:{number}", line.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON lines: {error}.") from None


def _messages(line: str, where: str) -> list[Message]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError(f"{where}: not JSON; give one object a line.") from None
    if isinstance(row, dict) and isinstance(row.get("prompt"), str):
        answer = row.get("answer", row.get("reference", ""))
        row = {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": answer}]}
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        raise ConfigError(
            f"{where}: should hold 'messages', a list of objects with a role of {', '.join(ROLES)} and a content "
            "of text, or 'prompt' and 'answer'."
        )
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in ROLES and isinstance(message.get("content"), str)
