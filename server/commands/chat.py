"""A chat in the terminal with any OpenAI-compatible server: streaming, history, commands; or texts continued."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
from rich.console import Console
from rich.text import Text

from alignment.errors import TuttiError
from server.commands.client import NO_KEY, api_url

HELP = "/model [NAME]  /system [TEXT]  /reset  /quit    Ctrl-C stops an answer, Ctrl-D leaves"


class ChatError(TuttiError):
    """The server could not be reached, refused, or broke off; the message is one line."""


@dataclass
class Conversation:
    """A conversation: its messages so far, and the model that answers."""

    model: str
    system: str | None = None
    temperature: float = 0.0
    turns: list[dict[str, str]] = field(default_factory=list)

    def messages(self) -> list[dict[str, str]]:
        """The conversation as the API wants it."""
        return ([{"role": "system", "content": self.system}] if self.system else []) + self.turns


class ChatClient:
    """The calls of the OpenAI API that a terminal needs."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        # A large ensemble may take minutes to its first token, and an idle stream is kept alive by comments.
        timeout = openai.Timeout(10, read=600)
        try:
            self._sdk = openai.OpenAI(
                base_url=api_url(url), api_key=api_key or NO_KEY, timeout=timeout, max_retries=0
            )
        except httpx2.InvalidURL as error:
            raise ChatError(f"{url} is no URL: {error}") from None

    def close(self) -> None:
        """Close the connection to the server."""
        self._sdk.close()

    def models(self) -> list[str]:
        """The names that the server serves, at least one."""
        try:
            names = [model.id for model in self._sdk.models.list().data]
        except openai.APIError as error:
            raise self._failure(error) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ChatError(f"{self._sdk.base_url} does not answer like an OpenAI-compatible server") from error
        if not names:
            raise ChatError(f"{self._sdk.base_url} serves no model")
        return names

    def answer(self, conversation: Conversation) -> Iterator[str]:
        """The pieces of the next answer as they arrive; closing the iterator stops the generation."""
        messages: Any = conversation.messages()
        return self._pieces(
            lambda: self._sdk.chat.completions.create(
                model=conversation.model, messages=messages, temperature=conversation.temperature, stream=True
            ),
            lambda choice: choice.delta.content,
            "chat completion",
        )

    def continuation(self, model: str, prompt: str, max_tokens: int, temperature: float) -> Iterator[str]:
        """The pieces of the text that follows a prompt, likewise."""
        return self._pieces(
            lambda: self._sdk.completions.create(
                model=model, prompt=prompt, max_tokens=max_tokens, temperature=temperature, stream=True
            ),
            lambda choice: choice.text,
            "completion",
        )

    def _pieces(self, ask: Callable[[], Any], text_of: Callable[[Any], str | None], kind: str) -> Iterator[str]:
        try:
            with ask() as stream:
                for chunk in stream:
                    yield from (text for choice in chunk.choices if (text := text_of(choice)))
        except openai.APIError as error:
            raise self._failure(error) from error
        except httpx2.HTTPError as error:
            raise ChatError(f"{self._sdk.base_url} broke off: {_reason(error)}") from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ChatError(f"the server sent something that is not a {kind} chunk") from error

    def _failure(self, error: openai.APIError) -> ChatError:
        """One line on a server that cannot be reached, refuses, or reports an error amid its answer."""
        match error:
            case openai.APIStatusError():
                return ChatError(f"{_refusal(error.response)} (HTTP {error.status_code})")
            case openai.APIConnectionError():
                return ChatError(f"{self._sdk.base_url} cannot be reached: {_reason(error.__cause__ or error)}")
            case _:
                return ChatError(_line(error.message))


def chat(client: ChatClient, conversation: Conversation, console: Console) -> bool:
    """Talk until the input ends or says /quit. Returns whether every question was answered."""
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401  (gives `input` a history and keys to edit with)

        console.print(f"[bold]{conversation.model}[/]  [dim]{HELP}[/]")

    def answered(line: str) -> bool:
        if line.startswith("/"):
            return _command(line, client, conversation, console)
        exchange(line, client, conversation, console)
        return True

    return _each_line(answered, interactive, console)


def complete_all(go_on: Callable[[str], Iterator[str]], console: Console, only: str | None = None) -> bool:
    """Go on from `only`, else from every line of the input. Returns whether there was an answer to each."""

    def answered(line: str) -> bool:
        show(go_on(line), [], console)
        return True

    return answered(only) if only is not None else _each_line(answered, sys.stdin.isatty(), console)


def _each_line(answered: Callable[[str], bool], interactive: bool, console: Console) -> bool:
    """Answer every line of the input until `answered` returns False. Returns whether no answer failed."""
    all_well = True
    while (line := _read_line(interactive)) is not None:
        try:
            if line and not answered(line):
                break
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
            console.print("[dim]The conversation starts again.[/]")
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


def exchange(question: str, client: ChatClient, conversation: Conversation, console: Console) -> None:
    """Ask, show the answer as it comes, and remember both; a question without any answer is forgotten."""
    conversation.turns.append({"role": "user", "content": question})
    pieces: list[str] = []
    try:
        show(client.answer(conversation), pieces, console)
    finally:
        if pieces:
            conversation.turns.append({"role": "assistant", "content": "".join(pieces)})
        else:
            conversation.turns.pop()


def show(answer: Iterator[str], pieces: list[str], console: Console) -> None:
    """Print the pieces of an answer as they come, and add them to `pieces`; Ctrl-C stops it."""
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
            console.print()


def printable(text: str) -> str:
    """`text` without control characters, which could otherwise steer the terminal; tabs and newlines stay."""
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))


def _refusal(response: httpx2.Response) -> str:
    """One line from an error response, which need not be OpenAI's error object."""
    try:
        message = response.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        message = response.text or response.reason_phrase
    return _line(str(message))[:500]


def _reason(error: BaseException) -> str:
    return _line(str(error)) or type(error).__name__


def _line(text: str) -> str:
    return " ".join(printable(text).split())
