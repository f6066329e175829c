"""The held-out questions of the four tasks, written to test.jsonl: `python -m deploy.demo.testset`."""

import json
from pathlib import Path
from random import Random

from deploy.demo.tasks import TASKS, Example, Split, stream

PATH = Path(__file__).parent / "test.jsonl"
ROWS_PER_TASK = 100
SEED = 2404


def rows() -> list[dict[str, str]]:
    """The rows of the test set: no prompt twice, the same rows every time."""
    result = []
    for name, task in TASKS.items():
        prompts: set[str] = set()
        for example in stream(task, Split.TEST, Random(f"{SEED} {name}")):
            if example.prompt in prompts:
                continue
            result.append(row(name, f"test-{len(prompts):03d}", example))
            prompts.add(example.prompt)
            if len(prompts) == ROWS_PER_TASK:
                break
    return result


def row(task: str, name: str, example: Example) -> dict[str, str]:
    """A question as `tutti eval` reads it."""
    return {"id": f"{task}-{name}", "task": task, "prompt": example.prompt, "reference": example.reference}


def text() -> str:
    """The content of test.jsonl."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())


def main() -> None:
    PATH.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
