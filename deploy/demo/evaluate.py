"""Scores single members on the test set by greedy decoding: `python -m deploy.demo.evaluate`."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from deploy.demo import scoring, testset
from deploy.demo.members import MEMBERS

MODELS = Path(__file__).parent / "models"
ROWS_AT_ONCE = 50
LONGEST_ANSWER = 96

Scores = dict[str, dict[str, float]]
"""task -> metric -> score in percent"""


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model as it is stored, in bfloat16."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def score(folder: Path) -> Scores:
    """All tasks of the test set, answered by one model."""
    model, tokenizer = load(folder)
    rows_of = defaultdict(list)
    for line in testset.PATH.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows_of[row["task"]].append(row)
    scores: Scores = {}
    for task, rows in rows_of.items():
        answers = answer(model, tokenizer, [row["prompt"] for row in rows])
        references = [row["reference"] for row in rows]
        scores[task] = {"exact_match": scoring.exact_match(task, answers, references)}
        if task in scoring.PROSE:
            scores[task]["chrf"] = scoring.chrf(answers, references)
    return scores


@torch.inference_mode()
def answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[str]:
    """The greedy answer to each prompt, asked as the only message of a chat."""
    tokenizer.padding_side = "left"
    answers = []
    for start in range(0, len(prompts), ROWS_AT_ONCE):
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + ROWS_AT_ONCE]]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        inputs.pop("token_type_ids", None)
        ids = model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
        new = ids[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return answers


def as_table(scores_of: Mapping[str, Scores]) -> Table:
    """Exact match of each model by task, chrF in brackets, and the mean of exact match."""
    tasks = list(next(iter(scores_of.values())))
    table = Table("model", *tasks, "all", title="exact match in % (chrF)")
    for name, scores in scores_of.items():
        cells = [
            f"{metrics['exact_match']:.0f}" + (f" ({metrics['chrf']:.0f})" if "chrf" in metrics else "")
            for metrics in scores.values()
        ]
        mean = sum(metrics["exact_match"] for metrics in scores.values()) / len(scores)
        table.add_row(name, *cells, f"{mean:.1f}")
    return table


def main(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False) -> None:
    """Score the stored demo models on the held-out questions."""
    scores_of = {name: score(MODELS / name) for name in MEMBERS}
    if as_json:
        print(json.dumps(scores_of))
    else:
        Console().print(as_table(scores_of))


if __name__ == "__main__":
    typer.run(main)
