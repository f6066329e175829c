"""Asked: processor time per token of served names, over some of the demo's questions."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from deploy.demo.members import MODELS
from fusion.calibrate.asking import Form
from fusion.distill.training.reading import open_tokenizer
from fusion.distill.training.settings import Source
from server.commands.client import local
from server.commands.evaluate.questions import read_all
from server.commands.evaluate.run import evaluate
from server.settings import read_settings

DEPLOY = MODELS.parents[1]


def milliseconds_a_token(config: str, names: Sequence[str], limit: int = 10) -> dict[str, float]:
    """Processor milliseconds a token, prompts included, of each name; asked one after the other, 16 at a time.

    Args:
        config: a file of deploy/.
        limit: questions of each task.
    """
    settings = read_settings(DEPLOY / config)
    questions = read_all([Path(task) for task in settings.evaluation.tasks], limit)
    tokenizer, _ = open_tokenizer(Source(str(MODELS / "lingvo")))
    spent = {}

    async def ask() -> None:
        async with local(settings) as client:
            for name in names:
                began = time.process_time()
                answers = await evaluate(
                    client, questions, Console(quiet=True), form=Form(), models=[name], concurrency=16
                )
                tokens = sum(len(tokenizer.encode(one.text, add_special_tokens=False)) + 1 for one in answers)
                spent[name] = 1000 * (time.process_time() - began) / tokens

    asyncio.run(ask())
    return spent
