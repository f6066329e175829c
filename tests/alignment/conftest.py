from __future__ import annotations

import json
from functools import cache

import pytest

from alignment.tokenizer import Tokenizer
from tests.conftest import shared

REAL = ("llama-2", "gpt2", "qwen", "mistral-tekken")


@cache
def real_tokenizer(name: str) -> Tokenizer:
    return Tokenizer.load(str(shared("tokenizers", name)))


@pytest.fixture(scope="session")
def real() -> dict[str, Tokenizer]:
    """Four real tokenizers by name."""
    return {name: real_tokenizer(name) for name in REAL}


@pytest.fixture(scope="session")
def texts() -> list[dict]:
    """Texts with the ids that the original libraries gave them."""
    return [json.loads(line) for line in shared("tokenizers", "texts.jsonl").read_text().splitlines()]
