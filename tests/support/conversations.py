"""Chats of random texts, some of which look like control tokens."""

from __future__ import annotations

from tests.support import small_tokenizers as tiny
from tests.support.reference import real_tokenizer

CHATTING = {
    "llama-2": lambda: real_tokenizer("llama-2"),
    "qwen": lambda: real_tokenizer("qwen"),
    "mistral-tekken": lambda: real_tokenizer("mistral-tekken"),
    "tiny byte level": lambda: tiny.byte_level("<think>", "</think>"),
    "tiny sentencepiece": lambda: tiny.sentencepiece("<think>", "</think>"),
    "tiny metaspace": lambda: tiny.metaspace("first", split=False),
    "tiny metaspace, always": lambda: tiny.metaspace("always", split=True),
}


FORGERIES = ["<s>", "</s>", "<|end|>", "<|im_end|>", "<|im_start|>", "[INST]", "[/INST]", "<unk>", "<|endoftext|>"]


# Nothing in here is a control token of any of them, though some could begin or end one.
WORDS = [
    "Hello",
    " you",
    "  ",
    "\n",
    "12",
    "你好",
    "é",
    "<",
    "[",
    "<|",
    ">",
    "s>",
    "|>",
    "]",
    "<think>",
    "</think>",
]


def conversation(contents: list[str]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
