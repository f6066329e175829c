"""Texts that models are distilled on, as JSON lines of chats: `python -m deploy.demo.texts FILE`.

They come from the training split of the tasks, never from the held-out questions, with the reference as answer. An
eighth of that split is kept for development and is in no text; `--questions DEV` writes questions of it, on which
settings can be chosen.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from deploy.demo.chats import Chat, exchange
from deploy.demo.tasks import TASKS, Example, Split, Task, small_talk, stream
from deploy.demo.tasks.example import split_of
from deploy.demo.testset import ROWS_PER_TASK, row

SHARES = {"arithmetic": 4, "data_to_text": 18, "translation": 12, "commonsense": 64, "small_talk": 2}
"""Relative numbers of chats: most where the base, a translator, can learn most in few steps."""

SEED = 8007
CHATS = 5_000


def chats(seed: int, count: int = CHATS) -> list[Chat]:
    """Single exchanges, the same for the same seed."""
    rng = Random(seed)
    streams = {name: _stream(task, Split.TRAIN, rng) for name, task in TASKS.items()}
    found = []
    for name in rng.choices(list(SHARES), list(SHARES.values()), k=count):
        example = small_talk.draw(rng) if name == "small_talk" else next(streams[name])
        found.append(exchange(example.prompt, example.answer))
    return found


def questions(seed: int) -> list[dict[str, str]]:
    """The questions kept for development, as many of each task as there are held out."""
    rows = []
    for name, task in TASKS.items():
        examples = {one.prompt: one for one in islice(_stream(task, Split.TEST, Random(f"{seed} {name}")), 1000)}
        some = list(examples.values())[:ROWS_PER_TASK]
        rows += [row(name, f"development-{number:03d}", example) for number, example in enumerate(some)]
    return rows


def main(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="Where they go.")],
    development: Annotated[
        Path | None, typer.Option("--questions", help="Where questions for development go.")
    ] = None,
) -> None:
    """Write the texts."""
    _write(out, [{"messages": chat} for chat in chats(SEED)])
    if development is not None:
        _write(development, questions(SEED))


def _stream(task: Task, kept: Split, rng: Random) -> Iterator[Example]:
    """The training split without what is kept for development (TRAIN), or what is kept (TEST)."""
    return (one for one in stream(task, Split.TRAIN, rng) if split_of(f"development {one.key}") is kept)


def _write(path: Path, rows: list[dict[str, object]] | list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
