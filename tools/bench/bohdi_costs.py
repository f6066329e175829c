"""Generation of `tutti distill bohdi` against that of `tutti eval`: `python -m tools.bench.bohdi_costs`.

Base and sources of the demo's file answer the same questions greedily, as many at a time, once through the voices
of a run and once through a server and its client. Both write the same tokens, so the ratio of the times is that of
the tokens per second. One JSON object on the last line.
"""

import asyncio
import json
import time
from pathlib import Path

from rich.console import Console

from fusion.calibrate.asking import Form
from fusion.distill.bohdi.settings import TARGET
from fusion.distill.bohdi.voices import Request, open_voices
from fusion.options import SamplingParams
from server.commands.client import local
from server.commands.evaluate.questions import read_all
from server.commands.evaluate.run import evaluate
from server.settings import Settings
from server.settings.distill.bohdi import read_bohdi

QUESTIONS = 25  # of each task
CONCURRENCY = 64
REPEATS = 3
FILE = Path("deploy/distill/bohdi-demo.yaml")


def main() -> None:
    settings, asked = read_bohdi(FILE)
    assert asked is not None
    questions = read_all([Path(task) for task in asked.tasks], QUESTIONS)
    sources = {TARGET: settings.base, **settings.sources}
    longest = Form().max_tokens
    requests = [
        Request(name, question.prompt, SamplingParams(max_tokens=longest, temperature=0.0))
        for name in sources
        for question in questions
    ]
    own, served = [], []
    with open_voices(sources, None) as voices:
        voices.ask(requests[:8])
        for _ in range(REPEATS):
            before, began = voices.tokens, time.perf_counter()
            voices.ask(requests)
            own.append(time.perf_counter() - began)
            tokens = voices.tokens - before
    models = {name: {"source": one.source, "dtype": one.dtype} for name, one in sources.items()}
    limits = {name: model | {"max_sequences": CONCURRENCY} for name, model in models.items()}
    configured = Settings.model_validate({"models": limits}, context={"folder": Path.cwd()})

    async def ask() -> None:
        async with local(configured) as client:
            for _ in range(REPEATS):
                began = time.perf_counter()
                await evaluate(client, questions, Console(stderr=True), form=Form(), concurrency=CONCURRENCY)
                served.append(time.perf_counter() - began)

    asyncio.run(ask())
    print(
        json.dumps(
            {
                "tokens": tokens,
                "bohdi_tokens_per_second": round(tokens / min(own)),
                "eval_tokens_per_second": round(tokens / min(served)),
                "ratio": round(min(served) / min(own), 2),
            }
        )
    )


if __name__ == "__main__":
    main()
