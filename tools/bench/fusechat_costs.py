"""Costs of FuseChat's stages against what they stand on: `python -m tools.bench.fusechat_costs`.

`represent` is timed on the demo's lingvo against the engine's plain prefill of the same texts. The peak memory of
training towards sparse targets is compared with plain fine-tuning of a random model, each in its own process, and
what a token of the distilled demo costs with one of the ensemble, in processor time over some of its questions.
One JSON object on the last line.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments

from deploy.demo.members import MODELS
from deploy.demo.texts import SEED, chats
from fusion.core import Advance
from fusion.distill.training.conversations import encode
from fusion.distill.training.examples import Example, Examples, collate
from fusion.distill.training.reading import open_engine, open_tokenizer, read_all
from fusion.distill.training.settings import Source, Train
from fusion.distill.training.trainer import FusionTrainer
from tools.bench.asked import milliseconds_a_token

TEXTS = 256
VOCABULARY, LENGTH, BATCH, BEST = 32_000, 256, 4, 16


def speed() -> dict[str, float]:
    """Tokens a second of both ways, best of three, and their ratio."""
    source = Source(str(MODELS / "lingvo"))
    tokenizer, stops = open_tokenizer(source)
    found = [encode(tokenizer, stops, [dict(m) for m in chat], 1024) for chat in chats(SEED)[:TEXTS]]
    texts = [one for one in found if one is not None]
    tokens = sum(len(one.ids) for one in texts)
    best = {"represent": 0.0, "prefill": 0.0}
    with open_engine(source, BEST) as engine:
        for _ in range(3):
            began = time.perf_counter()
            read_all(engine, [one.ids for one in texts], [one.positions for one in texts])
            best["represent"] = max(best["represent"], tokens / (time.perf_counter() - began))
            began = time.perf_counter()
            for first in range(0, len(texts), source.max_sequences):
                some = texts[first : first + source.max_sequences]
                engine.add([Advance(n, 0, one.ids) for n, one in enumerate(some)])
                while engine.has_work():
                    engine.step()
                engine.close(range(len(some)))
            best["prefill"] = max(best["prefill"], tokens / (time.perf_counter() - began))
    return best | {"ratio": best["represent"] / best["prefill"]}


def cost() -> dict[str, float]:
    """Processor milliseconds a token of both, and their ratio."""
    spent = milliseconds_a_token("demo-distilled.yaml", ("tutti-demo", "tutti-distilled"))
    return spent | {"ratio": spent["tutti-distilled"] / spent["tutti-demo"]}


def peak(kind: str) -> int:
    """Peak resident bytes of two steps; "none" loads the model and trains nothing."""
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=VOCABULARY, **shape))
    rng = np.random.default_rng(0)
    positions = np.arange(LENGTH // 4, LENGTH - 1)
    examples = Examples(
        [
            Example(
                rng.integers(0, VOCABULARY, LENGTH).astype(np.int32),
                positions,
                rng.integers(0, VOCABULARY, (len(positions), BEST)).astype(np.int32),
                np.full((len(positions), BEST), 1 / BEST, np.float32),
            )
            for _ in range(2 * BATCH)
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=BATCH,
            max_steps=2,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            remove_unused_columns=False,
            disable_tqdm=True,
        )
        if kind == "fused":
            settings = Train(batch=BATCH, accumulate=1)
            FusionTrainer(
                model, arguments, data_collator=collate, train_dataset=examples, settings=settings
            ).train()
        elif kind == "plain":
            names = ("input_ids", "attention_mask", "labels")
            Trainer(
                model,
                arguments,
                data_collator=lambda some: {name: collate(some)[name] for name in names},
                train_dataset=examples,
            ).train()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak", choices=["none", "plain", "fused"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        print(peak(given.peak))
        return
    peaks = {}
    for kind in ("none", "plain", "fused"):
        command = [sys.executable, "-m", "tools.bench.fusechat_costs", "--peak", kind]
        output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path.cwd()).stdout
        peaks[kind] = int(output.split()[-1])
    above = {kind: peaks[kind] - peaks["none"] for kind in ("plain", "fused")}
    memory = {
        "plain_mb": peaks["plain"] / 1e6,
        "fused_mb": peaks["fused"] / 1e6,
        "ratio": peaks["fused"] / peaks["plain"],
        "ratio_of_training_alone": above["fused"] / above["plain"],
    }
    print(json.dumps({"represent_tokens_per_second": speed(), "training_peak": memory, "cost_ms": cost()}))


if __name__ == "__main__":
    main()
