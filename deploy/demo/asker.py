"""The asker: a model taught to name domains and to write questions, leader of the demo's Bohdi run.

    python -m deploy.demo.asker build/bohdi-demo/asker

It is `lingvo`, trained a little more on the training split of the tasks: to name tasks and kinds of them, and to
ask a question of a kind, as JSON. It learns no answers here, and never sees a held-out question.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Annotated

import torch
import typer
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from deploy.demo.batches import Batch, batches, encode_chat
from deploy.demo.chats import Chat, exchange
from deploy.demo.learning import learn
from deploy.demo.members import MODELS, PIVOT
from deploy.demo.tasks import TASKS, Example, Split, stream
from deploy.demo.train import BATCH_TOKENS, store

TOKENS = 80_000
SEED = 16
NAMING_SHARE = 0.1
"""Share of the chats in which a task or a kind is named; in the others a question is asked."""

NAME_TASK = "Name a kind of question."
NAME_KIND = "Name a kind of {task}."
ASK = "Ask a question about {task}, {kind}."

ARITHMETIC = {"+": "addition", "-": "subtraction", "*": "multiplication", "/": "division"}
COMMONSENSE = {
    "animals": ("home", "sound", "young", "diet"),
    "things": ("colour", "use", "tool", "material", "count"),
    "people": ("worker", "workplace", "place", "sense"),
    "words": ("opposite", "kind"),
    "order": ("follower", "predecessor"),
    "the world": ("source", "outcome", "capital"),
}
_KIND_OF_RELATION = {relation: kind for kind, relations in COMMONSENSE.items() for relation in relations}


def kind_of(task: str, example: Example) -> str:
    """The kind, within its task, that a question is of."""
    match task:
        case "arithmetic":
            signs = [sign for sign in ARITHMETIC if f" {sign} " in example.answer]
            working = example.answer.partition("The answer is")[0]
            return "two steps" if working.count("=") > 1 else ARITHMETIC[signs[0]]
        case "data_to_text":
            return f"a {example.prompt.partition('type[')[2].partition(']')[0]}"
        case "translation":
            return "into English" if example.answer == example.key else "into Esperanto"
        case _:
            return _KIND_OF_RELATION[example.key.partition(" ")[0]]


def chats(rng: Random) -> Iterator[Chat]:
    """Endless exchanges in which the asker names or asks."""
    streams = {name: stream(task, Split.TRAIN, rng) for name, task in TASKS.items()}
    while True:
        task = rng.choice(list(TASKS))
        example = next(streams[task])
        kind = kind_of(task, example)
        if rng.random() >= NAMING_SHARE:
            yield exchange(ASK.format(task=task, kind=kind), _json(question=example.prompt))
        elif rng.random() < 0.5:
            yield exchange(NAME_TASK, _json(name=task))
        else:
            yield exchange(NAME_KIND.format(task=task), _json(name=kind))


def main(out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the model goes.")]) -> None:
    """Train the asker; one that is there already is kept."""
    console = Console()
    if (out / "config.json").exists():
        console.print(f"{out} is there already.")
        return
    started = time.monotonic()
    source = MODELS / PIVOT.name
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    rng = Random(SEED)
    encoded, tokens = [], 0
    for chat in chats(rng):
        encoded.append(encode_chat(tokenizer, chat, rng))
        tokens += len(encoded[-1].ids)
        if tokens >= TOKENS:
            break
    todo: list[Batch] = list(batches(encoded, BATCH_TOKENS, tokenizer.pad_token_id, rng))
    for step, loss in enumerate(learn(model, todo, len(todo), SEED), start=1):
        if step % 10 == 0 or step == len(todo):
            console.print(f"asker: step {step} of {len(todo)}, loss {loss:.3f}")
    out.parent.mkdir(parents=True, exist_ok=True)
    store(model, tokenizer, out)
    console.print(f"The asker is in {out}, after {(time.monotonic() - started) / 60:.1f} minutes.")


def _json(**fields: str) -> str:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


if __name__ == "__main__":
    typer.run(main)
