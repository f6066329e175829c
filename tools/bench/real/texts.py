"""The texts that are predicted: rows of four public tasks, question and answer one after the other."""

from __future__ import annotations

import json
from pathlib import Path

FILES = {"gsm8k_test.jsonl": 8, "e2e_dev.jsonl": 8, "arc_challenge.jsonl": 8, "multi30k_en_de_val.jsonl": 6}
LONGEST = 600


def texts_of(tasks: Path, first: int = 0) -> list[str]:
    """30 texts, from row `first` of each file on."""
    found = []
    for file, rows in FILES.items():
        for line in (tasks / file).read_text(encoding="utf-8").splitlines()[first : first + rows]:
            row = json.loads(line)
            answer = row.get("solution") or row.get("reference") or row["references"][0]
            found.append(f"{row['prompt']} {answer}"[:LONGEST])
    return found
