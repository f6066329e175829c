"""Writes the texts that models are distilled on, as JSON lines of chats: `python -m deploy.demo.texts FILE`.

They come from the training split of the tasks, never from the held-out questions, with the reference as answer.
"""

import json
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from deploy.demo.chats import Chat, exchange
from deploy.demo.tasks import TASKS, Split, small_talk, stream

SHARES = {"arithmetic": 6, "data_to_text": 34, "translation": 16, "commonsense": 42, "small_talk": 2}
"""Relative numbers of chats: most of what the base, a translator, can learn in so few steps."""

SEED = 8007
CHATS = 8_000


def chats(seed: int) -> list[Chat]:
    """Single exchanges, the same for the same seed."""
    rng = Random(seed)
    streams = {name: stream(task, Split.TRAIN, rng) for name, task in TASKS.items()}
    found = []
    for name in rng.choices(list(SHARES), list(SHARES.values()), k=CHATS):
        example = small_talk.draw(rng) if name == "small_talk" else next(streams[name])
        found.append(exchange(example.prompt, example.answer))
    return found


def main(out: Annotated[Path, typer.Argument(metavar="FILE", help="Where they go.")]) -> None:
    """Write the texts."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as file:
        for chat in chats(SEED):
            file.write(json.dumps({"messages": chat}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    typer.run(main)
