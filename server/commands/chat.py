"""A chat in the terminal with any OpenAI-compatible server: streaming, history, a few commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from rich.console import Console
from rich.text import Text

from alignment.errors import TuttiError

HELP = "/model [NAME]  /system [TEXT]  /reset  /quit    Ctrl-C stops an answer, Ctrl-D leaves"


class ChatError(TuttiError):
    """The server could not be reached, refused, or broke off; the message is one line."""


@dataclass
class Conversation:
    """What has been said so far, and to whom."""

    model: str
    system: str | None = None
    temperature: float = 0.0
    turns: list[dict[str, str]] = field(default_factory=list)

    def messages(self) -> list[dict[str, str]]:
        """The conversation as the API wants it."""
        return ([{"role": "system", "content": self.system}] if self.system else []) + self.turns


class ChatClient:
    """The two calls of the OpenAI API that a chat needs."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        base = url.rstrip("/").removesuffix("/v1")
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        # A large ensemble may take minutes to its first token, and an idle stream is kept alive by comments.
        timeout = httpx.Timeout(10, read=600)
        try:
            self._http = httpx.Client(base_url=f"{base}/v1", headers=headers, timeout=timeout)
        except httpx.InvalidURL as error:
            raise ChatError(f"{url} is no URL: {error}") from None

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def models(self) -> list[str]:
        """The names that the server serves, at least one."""
        try:
            response = self._http.get("/models")
            if response.is_error:
                raise ChatError(_refusal(response))
            names = [str(model["id"]) for model in response.json()["data"]]
        except httpx.HTTPError as error:
            raise ChatError(self._unreachable(error)) from error
        except (ValueError, LookupError, TypeError) as error:
            raise ChatError(f"{self._http.base_url} does not answer like an OpenAI-compatible server") from error
        if not names:
            raise ChatError(f"{self._http.base_url} serves no model")
        return names

    def answer(self, conversation: Conversation) -> Iterator[str]:
        """The pieces of the next answer as they arrive; closing the iterator stops the generation."""
        body = {
            "model": conversation.model,
            "messages": conversation.messages(),
            "temperature": conversation.temperature,
            "stream": True,
        }
        try:
            with self._http.stream("POST", "/chat/completions", json=body) as response:
                if response.is_error:
                    response.read()
                    raise ChatError(_refusal(response))
                for data in events(response.iter_bytes()):
                    if data == "[DONE]":
                        return
                    yield from _content(data)
        except httpx.HTTPError as error:
            raise ChatError(self._unreachable(error)) from error

    def _unreachable(self, error: httpx.HTTPError) -> str:
        return f"{self._http.base_url} cannot be reached: {_line(str(error)) or type(error).__name__}"


def events(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of each server-sent event, from bytes cut anywhere; comments and other fields are skipped.

    Splits at line feeds only: a text may hold other line separators, such as U+2028, which JSON leaves as they
    are and which end no line of an event stream.
    """
    pending, data = b"", []
    for chunk in chunks:
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" ").decode(errors="replace"))
            elif not line and data:
                yield "\n".join(data)
                data = []


def chat(client: ChatClient, conversation: Conversation, console: Console) -> bool:
    """Talk until the input ends or says /quit. Returns whether every question was answered."""
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401  (gives `input` a history and keys to edit with)

        console.print(f"[bold]{conversation.model}[/]  [dim]{HELP}[/]")
    all_well = True
    while (line := _read_line(interactive)) is not None:
        try:
            if line.startswith("/"):
                if not _command(line, client, conversation, console):
                    return all_well
            elif line:
                _exchange(line, client, conversation, console)
        except ChatError as error:
            all_well = False
            console.print(Text(f"error: {error}", style="red"), soft_wrap=True)
    return all_well


def _read_line(interactive: bool) -> str | None:
    """The next line without its ends, None at the end of input."""
    while True:
        try:
            return input("> " if interactive else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            print()  # noqa: T201  (the half-written line is given up, the chat goes on)


def _command(line: str, client: ChatClient, conversation: Conversation, console: Console) -> bool:
    """Carry out a command; False for /quit."""
    name, _, rest = line.partition(" ")
    match name, rest.strip():
        case "/quit", _:
            return False
        case "/reset", _:
            conversation.turns.clear()
            console.print("[dim]The conversation starts anew.[/]")
        case "/model", "":
            for model in client.models():
                console.print(Text(f"{'*' if model == conversation.model else ' '} {model}", style="dim"))
        case "/model", model:
            if model not in (known := client.models()):
                raise ChatError(f"there is no model '{model}' here; there are {', '.join(known)}")
            conversation.model = model
            console.print(Text(f"Talking to {model}.", style="dim"))
        case "/system", text:
            conversation.system = text or None
            console.print("[dim]System message set.[/]" if text else "[dim]System message removed.[/]")
        case _:
            console.print(f"[dim]{HELP}[/]")
    return True


def _exchange(question: str, client: ChatClient, conversation: Conversation, console: Console) -> None:
    """Ask, show the answer as it comes, and remember both; a question without any answer is forgotten."""
    conversation.turns.append({"role": "user", "content": question})
    pieces: list[str] = []
    answer = client.answer(conversation)
    try:
        for piece in answer:
            pieces.append(piece)
            console.print(Text(printable(piece)), end="", soft_wrap=True)
            console.file.flush()
    except KeyboardInterrupt:
        console.print(" [dim](stopped)[/]", end="")
    finally:
        answer.close()  # type: ignore[attr-defined]
        if pieces:
            conversation.turns.append({"role": "assistant", "content": "".join(pieces)})
            console.print()
        else:
            conversation.turns.pop()


def printable(text: str) -> str:
    """`text` without control characters, which could otherwise steer the terminal; tabs and newlines stay."""
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))


def _content(data: str) -> Iterator[str]:
    """The text in one chunk of a stream."""
    try:
        chunk: Any = json.loads(data)
        if "error" in chunk:
            raise ChatError(_line(str(chunk["error"].get("message", chunk["error"]))))
        for choice in chunk["choices"]:
            if text := choice["delta"].get("content"):
                yield str(text)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ChatError("the server sent something that is not a chat completion chunk") from error


def _refusal(response: httpx.Response) -> str:
    """One line from an error response, whatever it looks like."""
    try:
        message = response.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        message = response.text or response.reason_phrase
    return f"{_line(str(message))[:500]} (HTTP {response.status_code})"


def _line(text: str) -> str:
    return " ".join(printable(text).split())
