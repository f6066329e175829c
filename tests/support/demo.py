"""The demo's configuration and questions, as tests need them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
CONFIG = REPOSITORY / "deploy" / "demo.yaml"
MODELS = REPOSITORY / "deploy" / "demo" / "models"
ENSEMBLE = "tutti-demo"
TASKS = ("arithmetic", "commonsense", "data_to_text", "translation")

ROWS: list[dict[str, str]] = [
    json.loads(line) for line in (CONFIG.parent / "demo" / "test.jsonl").read_text().splitlines()
]


def questions(count: int, task: str | None = None) -> list[str]:
    """So many questions, spread evenly over the test split or over one task of it."""
    prompts = [row["prompt"] for row in ROWS if task in (None, row["task"])]
    return [prompts[index * len(prompts) // count] for index in range(count)]


def user(text: str) -> list[Any]:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]
