"""The asker: a model taught to name domains and to write questions, leader of the demo's Bohdi run.

    python -m deploy.demo.asker build/bohdi-demo/asker

It is `lingvo`, trained a little more on the training split of the tasks: to name three of the tasks and kinds of
them, and to ask a question of a kind, as JSON. It learns no answers here, and never sees a held-out question.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from deploy.demo.chats import Chat, exchange
from deploy.demo.members import MAX_LENGTH, MODELS, PIVOT
from deploy.demo.tasks import TASKS, Example, Split, stream
from fusion.distill.bohdi.learn import plain_examples
from fusion.distill.training.examples import Examples
from fusion.distill.training.settings import Source, Train, digest_of
from fusion.distill.training.train import Texts, train
from fusion.members.identity import content_digest

CHATS = 12000
SEED = 16
TRAIN = Train(
    learning_rate=7e-4,
    beta2=0.98,
    weight_decay=0.01,
    epochs=1,
    batch=16,
    accumulate=1,
    lm_weight=1.0,
    check_every=50,
    patience=None,
)
NAMING_SHARE = 0.25
"""Share of the chats in which a task or a kind is named; in the others a question is asked."""

NAME_TASK = "Name a kind of question."
NAME_KIND = "Name a kind of {task}."
ASK = "Ask a question about {task}, {kind}."

ASKED = ("data_to_text", "translation", "commonsense")
"""Sums are left out: a model of this size does not learn them in so few steps, whoever teaches it."""

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
        case "data_to_text":
            return f"a {example.prompt.partition('type[')[2].partition(']')[0]}"
        case "translation":
            return "into English" if example.answer == example.key else "into Esperanto"
        case _:
            return _KIND_OF_RELATION[example.key.partition(" ")[0]]


def chats(rng: Random) -> Iterator[Chat]:
    """Endless exchanges in which the asker names or asks."""
    streams = {name: stream(TASKS[name], Split.TRAIN, rng) for name in ASKED}
    while True:
        task = rng.choice(ASKED)
        example = next(streams[task])
        kind = kind_of(task, example)
        if rng.random() >= NAMING_SHARE:
            yield exchange(ASK.format(task=task, kind=kind), _json(question=example.prompt))
        elif rng.random() < 0.5:
            yield exchange(NAME_TASK, _json(name=task))
        else:
            yield exchange(NAME_KIND.format(task=task), _json(name=kind))


def main(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where it is trained; it is in `model` there.")],
) -> None:
    """Train the asker, or go on with that; one that is there already is kept."""
    base = Source(str(MODELS / PIVOT.name))
    exchanges = [(chat[0]["content"], chat[1]["content"]) for chat in islice(chats(Random(SEED)), CHATS)]
    texts = Texts(plain_examples(base, exchanges, MAX_LENGTH), Examples([]))
    inputs = digest_of(TRAIN, exchanges, content_digest(base.source))

    def progress(done: int, total: int) -> None:
        if done % 50 == 0 or done == total:
            print(f"asker: step {done} of {total}", flush=True)

    train("asker", base, texts, TRAIN, out, inputs, progress)


def _json(**fields: str) -> str:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


if __name__ == "__main__":
    typer.run(main)
