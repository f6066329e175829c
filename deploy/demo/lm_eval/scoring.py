"""The demo's questions in lm-evaluation-harness: answers are scored exactly as `tutti eval` does."""

from __future__ import annotations

from typing import Any

from server.commands.evaluate.questions import question_of
from server.commands.evaluate.scoring import is_right


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """`exact_match` of one answer."""
    row = {name: value for name, value in doc.items() if value is not None}
    return {"exact_match": float(is_right(question_of(row, "the task"), results[0]))}


def with_other_answers(dataset: Any) -> Any:
    """Add `answers`: the right one, then those of the three questions of the same task that come next."""
    by_task: dict[str, list[str]] = {}
    for doc in dataset:
        by_task.setdefault(doc["task"], []).append(doc["reference"])

    def extended(doc: dict[str, Any]) -> dict[str, Any]:
        others = [answer for answer in dict.fromkeys(by_task[doc["task"]]) if answer != doc["reference"]]
        start = by_task[doc["task"]].index(doc["reference"]) % len(others)
        return doc | {"answers": [doc["reference"], *(others[start:] + others[:start])[:3]]}

    return dataset.map(extended)
