"""Three members of equal size, each an expert at one task: a zoo to measure weights on.

The tasks are to describe a restaurant from data, to translate into German, and to write dates as an archive does.

`python -m tools.zoo --models FOLDER --tasks FOLDER --out FOLDER` fine-tunes each base model mostly on one task of
questions with references (files of JSON lines, as `tutti eval` reads them), on the answers alone, and writes the
members, `zoo.yaml`, and `questions.jsonl`, which no member has seen.

The questions are plain text completions: ask with `--completions`. The order of examples, and so the result on one
machine, depends on `--seed` alone. The defaults take about 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import calendar
import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

Example = tuple[str, str]  # prompt and answer
Encoded = tuple[list[int], int]  # ids of an example, and how many are the prompt's
Row = dict[str, Any]  # a question of the files


@dataclass(frozen=True)
class Task:
    """A task with the metric of its answers, what makes its examples, and what makes its questions."""

    name: str
    metric: str
    examples: Callable[[Path], list[Row]]
    questions: Callable[[Path], list[Row]]


def rows_of(file: str) -> Callable[[Path], list[Row]]:
    """The rows of a file of the tasks' folder."""
    return lambda tasks: [json.loads(line) for line in (tasks / file).read_text(encoding="utf-8").splitlines()]


MONTHS = calendar.month_name[1:]
ROMAN = ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII"]
WAYS = ("{day} {month} {year}", "{month} {day}, {year}", "the {day}{th} of {month} {year}")


def dates(first: int, last: int) -> Callable[[Path], list[Row]]:
    """Dates of these years, each in one of several ways, and the archive's: 1987-III/04 is 4 March 1987."""

    def rows(_: Path) -> list[Row]:
        rng = random.Random(first)
        found = []
        for year in range(first, last):
            month, day = rng.randrange(12), rng.randrange(1, 29)
            th = "th" if 10 < day < 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
            said = rng.choice(WAYS).format(day=day, th=th, month=MONTHS[month], year=year)
            prompt = f"Write the date as the archive does.\nDate: {said}\nArchive:"
            found.append({"id": f"date-{year}", "prompt": prompt, "reference": f"{year}-{ROMAN[month]}/{day:02}"})
        return found

    return rows


TASKS = (
    Task("describe", "chrf", rows_of("e2e_train.jsonl"), rows_of("e2e_dev.jsonl")),
    Task("german", "chrf", rows_of("multi30k_en_de_train.jsonl"), rows_of("multi30k_en_de_val.jsonl")),
    Task("dates", "match", dates(1200, 1800), dates(1800, 2000)),
)
# The first has the lowest perplexity of every prompt, whoever is the expert; the last has a token for each digit.
BASES = ("smollm2", "smollm2-gpt2", "smollm2-llama-2")
OWN = 0.9  # of a member's examples are of its own task, the rest of the others'
LONGEST = 340  # characters of an example: training is slow on a processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help=f"base models: {', '.join(BASES)}")
    parser.add_argument("--tasks", type=Path, required=True, help="files of the tasks")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=480, help="of a member")
    parser.add_argument("--layers", type=int, default=15, help="that are trained, from the last one down")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate at its highest")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    write_questions(given.tasks, given.out)
    for number, (base, task) in enumerate(zip(BASES, TASKS, strict=True)):
        folder = given.out / task.name
        if (folder / "model.safetensors").exists():
            continue
        examples = mixed(given.tasks, task, given.examples, given.seed + number)
        fine_tune(given.models / base, folder, examples, given)
    members = {task.name: {"source": task.name, "dtype": "float32"} for task in TASKS}
    ensemble = {"members": [*members], "pivot": TASKS[0].name, "alignment": "spelled"}
    (given.out / "zoo.yaml").write_text(yaml.safe_dump({"models": members, "ensembles": {"zoo": ensemble}}))


def write_questions(tasks: Path, out: Path) -> None:
    """Write each task's questions, none of which is among the examples."""
    rows = [row | {"task": task.name, "metric": task.metric} for task in TASKS for row in task.questions(tasks)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "questions.jsonl").write_text(lines, encoding="utf-8")


def mixed(tasks: Path, own: Task, count: int, seed: int) -> list[Example]:
    """Examples for a member, its own task's the most, in random order."""
    rng = random.Random(seed)
    found: list[Example] = []
    for task in TASKS:
        share = OWN if task is own else (1 - OWN) / (len(TASKS) - 1)
        every = [(row["prompt"], " " + row["reference"]) for row in task.examples(tasks)]
        short = [example for example in every if len("".join(example)) <= LONGEST]
        found += rng.sample(short, round(share * count))
    rng.shuffle(found)
    return found


def fine_tune(base: Path, out: Path, examples: Sequence[Example], given: argparse.Namespace) -> None:
    """One pass over the examples with AdamW, the rate rising and falling; the loss is of the answers alone."""
    torch.manual_seed(given.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    encoded = [encode(tokenizer, *example) for example in examples]
    batches = in_batches(encoded, given.batch, given.seed)
    model.requires_grad_(False)
    for part in (*model.model.layers[-given.layers :], model.model.norm):
        part.requires_grad_(True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=given.rate, weight_decay=0.01)
    warm = max(1, len(batches) // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (len(batches) - step) / (len(batches) - warm + 1))
    )
    model.train()
    began = time.monotonic()
    for number, some in enumerate(batches, start=1):
        loss = answer_loss(model, some)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if number % 10 == 0 or number == len(batches):
            spent = time.monotonic() - began
            print(
                f"{out.name}: {number} of {len(batches)} batches, loss {loss.item():.3f}, {spent:.0f} s",
                flush=True,
            )
    model.save_pretrained(out)
    for file in base.iterdir():
        if file.name.startswith("tokenizer"):
            shutil.copy(file, out / file.name)


def encode(tokenizer: Any, prompt: str, answer: str) -> Encoded:
    """Ids of an example with its end, and how many are the prompt's.

    Both are encoded as one text: Llama 2's tokenizer puts a space of its own before an answer that stands alone,
    and a member that has learned to write two is unlike the others from its first token on.
    """
    asked, ids = tokenizer(prompt).input_ids, tokenizer(prompt + answer).input_ids
    same = [one == other for one, other in zip(asked, ids, strict=False)]
    return [*ids, tokenizer.eos_token_id], [*same, False].index(False)


def in_batches(encoded: Sequence[Encoded], size: int, seed: int) -> list[list[Encoded]]:
    """Batches of examples of about equal length, in random order."""
    rng = random.Random(seed)
    window = 8 * size
    found = []
    for start in range(0, len(encoded), window):
        near = sorted(encoded[start : start + window], key=lambda one: len(one[0]))
        found += [near[at : at + size] for at in range(0, len(near), size)]
    rng.shuffle(found)
    return found


def answer_loss(model: Any, examples: Sequence[Encoded]) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens; the output layer runs at their positions alone."""
    width = max(len(ids) for ids, _ in examples)
    padded = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in examples])
    there = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in examples])
    rows = torch.tensor([i for i, (ids, asked) in enumerate(examples) for _ in range(asked, len(ids))])
    at = torch.tensor([t for ids, asked in examples for t in range(asked, len(ids))])
    hidden = model.model(input_ids=padded, attention_mask=there).last_hidden_state
    logits = model.lm_head(hidden[rows, at - 1])
    return torch.nn.functional.cross_entropy(logits, padded[rows, at])


if __name__ == "__main__":
    main()
