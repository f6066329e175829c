"""Time per token with drafts over plain rounds: `python -m tools.bench.drafts [demo] [copying] [small]`.

* `demo`: the demo's questions, with `auto` and `ngram`, at 1 and 16 sequences;
* `copying`: answers that copy their prompts (JSON with one field changed, a sentence quoted), with `ngram`;
* `small`: two models of 30 million parameters and one five times smaller that drafts, right in nine of ten tokens.

The models of the last two have random parameters and are made to say their answers (`tools.bench.saying`). All
ways run in one process, in turns. Prints one JSON line: the share of answers that are the same with and without
drafts; the ratio of the median times per token; that of the time of all answers, in which long ones count for
more; and that of the processor's time, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fusion.assembly.ensembles import build_ensemble
from fusion.core import Delta, End, Prompt
from fusion.ensemble import Ensemble
from fusion.loop.fuser import Fuser
from fusion.options import FusionParams, SamplingParams
from tools.bench import models, saying
from tools.bench.processor import processor

DEMO = Path(__file__).resolve().parents[2] / "deploy" / "demo.yaml"
TOKENS = 64
TEXTS = 8
SMALL_DRAFTER = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
WRONG = 0.1


def answers(
    fuser: Fuser, ensemble: Ensemble, prompts: Sequence[Prompt], fusion: FusionParams
) -> tuple[list[list[int]], float]:
    """The tokens of all answers, asked together, and the seconds they took."""
    found: list[list[int]] = [[] for _ in prompts]
    done = threading.Semaphore(0)

    def on_update(index: int, update: Delta) -> None:
        found[index] += [token.chosen.id for token in update.tokens]
        if isinstance(update, End):
            done.release()

    began = time.perf_counter()
    for index, prompt in enumerate(prompts):
        fuser.submit(
            ensemble,
            prompt,
            SamplingParams(max_tokens=TOKENS, temperature=0.0),
            fusion,
            on_update=lambda update, index=index: on_update(index, update),  # type: ignore[misc]
        )
    for _ in prompts:
        done.acquire()
    return found, time.perf_counter() - began


def compare(
    fuser: Fuser, ensemble: Ensemble, prompts: Sequence[Prompt], drafts: Sequence[str], sequences: int
) -> dict[str, Any]:
    """Every way to draft against plain rounds, with so many sequences at a time."""
    plain = replace(ensemble.defaults, draft=None)
    ways = {"plain": plain, **{draft: replace(plain, draft=draft) for draft in drafts}}
    times: dict[str, list[float]] = {way: [] for way in ways}  # of a token in each sequence
    total = dict.fromkeys(ways, 0.0)
    busy, same = dict.fromkeys(ways, 0.0), {way: [] for way in ways}  # type: ignore[var-annotated]
    tokens = 0
    for fusion in ways.values():
        answers(fuser, ensemble, prompts[:sequences], fusion)
    for at in range(0, len(prompts), sequences):
        given = {}
        for way, fusion in ways.items():
            began = time.process_time()
            given[way], seconds = answers(fuser, ensemble, prompts[at : at + sequences], fusion)
            busy[way] += time.process_time() - began
            times[way].append(seconds / statistics.mean(map(len, given[way])))
            total[way] += seconds
        tokens += sum(map(len, given["plain"]))
        for way in ways:
            same[way] += [a == b for a, b in zip(given[way], given["plain"], strict=True)]
    base = statistics.median(times["plain"])
    return {"plain_ms": round(1e3 * base, 2), "answers": len(prompts), "tokens": tokens} | {
        way: {
            "ratio": round(statistics.median(times[way]) / base, 3),
            "total": round(total[way] / total["plain"], 3),
            "processor": round(busy[way] / busy["plain"], 3),
            "same": statistics.mean(same[way]),
        }
        for way in drafts
    }


def demo(questions: int) -> dict[str, Any]:
    """On the demo's questions."""
    from server.loading import build  # what follows runs without a server's packages
    from server.settings import read_settings

    runtime = build(read_settings(DEMO, {}))
    runtime.fuser.start()
    ensemble = next(e for e in runtime.ensembles.values() if len(e.models) > 1)
    lines = (DEMO.parent / "demo" / "test.jsonl").read_text().splitlines()
    asked = [json.loads(line)["prompt"] for line in lines[:: max(1, len(lines) // questions)]][:questions]
    prompts = [ensemble.encode_chat([{"role": "user", "content": text}]) for text in asked]
    result = {str(n): compare(runtime.fuser, ensemble, prompts, ("auto", "ngram"), n) for n in (1, 16)}
    runtime.fuser.stop()
    return result


def copied(seed: int) -> tuple[str, str]:
    """A prompt, and an answer that copies most of it."""
    rng = np.random.default_rng(seed)
    words = [models.invented_words()[i] for i in rng.integers(2000, size=60)]
    if seed % 2:
        sentences = [" ".join(words[at : at + 15]) + "." for at in range(0, 45, 15)]
        return f"{' '.join(sentences)}\nQuote the second sentence:\n", f'"{sentences[1]}"'
    fields = {words[at]: " ".join(words[at + 1 : at + 4]) for at in range(0, 40, 4)}
    key = list(fields)[int(rng.integers(3, 7))]
    before = json.dumps(fields, indent=1)
    after = json.dumps({**fields, key: words[-1]}, indent=1)
    return f"{before}\nChange {key} to {words[-1]}:\n", after


def scripted(folders: dict[str, Path], drafts: Sequence[str], wrong: dict[str, float]) -> dict[str, Any]:
    """Answers that are known, at one sequence."""
    members, say = saying.load(folders, 2, wrong)
    ensemble = build_ensemble("bench", members, next(iter(members)))
    fuser = Fuser({name: model.member for name, model in members.items()})
    texts = [copied(seed) for seed in range(TEXTS)]
    for prompt, answer in texts:
        saying.expect(ensemble, say, prompt, answer)
    fuser.start()
    result = compare(fuser, ensemble, [ensemble.encode_text(prompt) for prompt, _ in texts], drafts, 1)
    fuser.stop()
    return result


def main() -> None:
    """Compare drafts with plain rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["demo", "copying", "small"])
    parser.add_argument("--questions", type=int, default=400)
    options = parser.parse_args()
    result: dict[str, Any] = {"processor": processor()}
    with tempfile.TemporaryDirectory() as scratch:
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "demo": lambda: demo(options.questions),
            "copying": lambda: scripted(models.build(Path(scratch) / "copying"), ("ngram",), {}),
            "small": lambda: scripted(
                models.build(Path(scratch) / "small", {**models.SMALL, "neox": SMALL_DRAFTER}),
                ("neox", "auto"),
                {"neox": WRONG},
            ),
        }
        for part in options.parts:
            result[part] = parts[part]()
            print(part, result[part], flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
