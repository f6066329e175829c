"""What the demo's asker is taught: the requests of the demo's Bohdi run, questions of the training split alone."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from random import Random

from deploy.demo import asker, testset
from deploy.demo.tasks import TASKS
from fusion.distill.bohdi.wording import asking, naming
from server.settings.distill.bohdi import read_bohdi

FILE = Path(__file__).parents[2] / "deploy" / "distill" / "bohdi-demo.yaml"


def test_it_is_taught_what_the_run_asks():
    settings, _ = read_bohdi(FILE)
    assert naming(settings.prompts, ()) == asker.NAME_TASK
    assert naming(settings.prompts, ("translation",)) == asker.NAME_KIND.format(task="translation")
    asked = asker.ASK.format(task="commonsense", kind="things")
    assert asking(settings.prompts, ("commonsense", "things")) == asked


def test_it_names_the_tasks_that_can_be_learned_and_asks_no_question_that_is_held_out():
    chats = list(islice(asker.chats(Random(1)), 4000))
    answers = [json.loads(chat[1]["content"]) for chat in chats]
    asked = Counter(answer["question"] for answer in answers if "question" in answer)
    named = {
        answer["name"]
        for chat, answer in zip(chats, answers, strict=True)
        if chat[0]["content"] == asker.NAME_TASK
    }
    assert named == set(TASKS) - {"arithmetic"}
    assert len(asked) > 2000
    assert not asked.keys() & {row["prompt"] for row in testset.rows()}
