from __future__ import annotations

import json

import pytest

from alignment.text.tokenizer import Tokenizer
from tests.support.reference import REAL, real_tokenizer, shared


@pytest.fixture(scope="session")
def real() -> dict[str, Tokenizer]:
    """Four real tokenizers by name."""
    return {name: real_tokenizer(name) for name in REAL}


@pytest.fixture(scope="session")
def texts() -> list[dict]:
    """Texts with the ids that the original libraries gave them."""
    return [json.loads(line) for line in shared("tokenizers", "texts.jsonl").read_text().splitlines()]
