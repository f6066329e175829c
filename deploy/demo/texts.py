"""Writes the texts that models are distilled on, as JSON lines of chats: `python -m deploy.demo.texts FILE`.

They come from the training split of the tasks, never from the held-out questions, with the reference as answer.
"""

import json
from itertools import islice
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from deploy.demo.chats import ChatStream

SHARES = {"arithmetic": 20, "data_to_text": 20, "translation": 40, "commonsense": 20, "small_talk": 3}
"""Relative numbers of chats; translation is the most that a member with another strength has to learn."""


def main(
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    chats: Annotated[int, typer.Option(help="How many.")] = 12_000,
    seed: Annotated[int, typer.Option(help="Of the generator.")] = 8007,
) -> None:
    """Write chats that are the same every time."""
    stream = ChatStream(SHARES, Random(seed))
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as file:
        for chat in islice(stream, chats):
            file.write(json.dumps({"messages": chat}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    typer.run(main)
