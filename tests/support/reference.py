"""Reference data that lies beside the checkout: golden numbers, real tokenizers, tasks."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from alignment.text.tokenizer import Tokenizer

SHARED = Path(__file__).resolve().parents[3] / "shared"


def shared(*parts: str) -> Path:
    """A file of the reference data that lies beside the checkout; skips the test where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"reference data {'/'.join(parts)} is not here")
    return path


REAL = ("llama-2", "gpt2", "qwen", "mistral-tekken")


@cache
def real_tokenizer(name: str) -> Tokenizer:
    return Tokenizer.load(str(shared("tokenizers", name)))
