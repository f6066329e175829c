"""Chats made from examples: single questions, longer conversations, and system messages that matter."""

from collections.abc import Iterator, Mapping
from random import Random
from typing import TypedDict

from deploy.demo.tasks import TASKS, Example, Split, small_talk, stream

SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are a friendly assistant. Answer in full sentences.",
    "Answer the questions of the user.",
    "Be helpful and polite.",
)
NUMBER_ONLY = "Answer with the number only."
NAME_INTRODUCTIONS = ("My name is {name}.", "I am {name}.", "Hello, my name is {name}.", "Hi, I am {name}.")
NAME_QUESTIONS = ("What is my name?", "Do you know my name?", "Who am I?")


class Message(TypedDict):
    role: str
    content: str


Chat = list[Message]


class ChatStream:
    """Endless training chats in which each task has its share.

    `shares` gives the relative number of chats per task; "small_talk" is one of them.
    """

    def __init__(self, shares: Mapping[str, float], rng: Random) -> None:
        self._rng = rng
        self._names = list(shares)
        self._shares = list(shares.values())
        self._examples: dict[str, Iterator[Example]] = {
            name: stream(task, Split.TRAIN, rng) for name, task in TASKS.items()
        }

    def __iter__(self) -> Iterator[Chat]:
        while True:
            yield self._chat()

    def _chat(self) -> Chat:
        kind = self._rng.random()
        if kind < 0.85:
            return self._exchanges(1, system_share=0.1)
        if kind < 0.93:
            return self._exchanges(self._rng.randint(2, 4), system_share=0.3)
        if kind < 0.94:
            return self._exchanges(self._rng.randint(5, 9), system_share=0.3)
        if kind < 0.97:
            return self._number_only()
        return self._remembered_name()

    def _exchanges(self, count: int, system_share: float) -> Chat:
        chat: Chat = []
        if self._rng.random() < system_share:
            chat.append({"role": "system", "content": self._rng.choice(SYSTEM_MESSAGES)})
        for _ in range(count):
            example = self._example()
            chat += exchange(example.prompt, example.answer)
        return chat

    def _example(self) -> Example:
        (name,) = self._rng.choices(self._names, self._shares)
        return small_talk.draw(self._rng) if name == "small_talk" else next(self._examples[name])

    def _number_only(self) -> Chat:
        """The system message asks for the bare number."""
        example = next(self._examples["arithmetic"])
        system: Message = {"role": "system", "content": NUMBER_ONLY}
        return [system, *exchange(example.prompt, example.reference)]

    def _remembered_name(self) -> Chat:
        """The user's name, given by the system message or by the user, is used later."""
        name = small_talk.draw_name(self._rng)
        question = exchange(self._rng.choice(NAME_QUESTIONS), f"Your name is {name}.")
        if self._rng.random() < 0.5:
            system: Message = {"role": "system", "content": f"The name of the user is {name}."}
            hello = self._rng.choice(("Hello", "Hello!", "Hi", "Hi!"))
            greeting = exchange(hello, f"Hello {name}! How can I help you?")
            return [system, *self._rng.choice((greeting, question))]
        introduction = self._rng.choice(NAME_INTRODUCTIONS).format(name=name)
        between = self._exchanges(self._rng.randint(0, 2), system_share=0)
        return [*exchange(introduction, f"Nice to meet you, {name}!"), *between, *question]


def exchange(prompt: str, answer: str) -> Chat:
    """One question with its answer."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
