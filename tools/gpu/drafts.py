"""Lockstep and drafts on one GPU: `python -m tools.gpu.drafts [--tiny]`, under 8 minutes.

Three models of 0.3 to 1 billion random parameters in bfloat16 on the transformers engine, made to say answers that
are known (`tools.bench.saying`), at 1, 16 and 64 sequences. Prints one JSON line: milliseconds of a round, its
ratio to the lockstep floor (the members' own plain cached steps in turn), and the time per token with `ngram` and
`auto` over that without. In bfloat16 passes of other widths differ, so texts may: `same` says how many did not.
`--tiny` is the same at sizes that a CPU runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from fusion.assembly.ensembles import build_ensemble
from fusion.loop.fuser import Fuser
from tools.bench import models, saying
from tools.bench.decode import fused_round_seconds, lockstep_seconds
from tools.bench.drafts import answers, compare, copied
from tools.bench.processor import processor

SHAPES = {
    "llama": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
    "qwen2": {
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    },
    "neox": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
}
TINY = {name: {**shape, "num_hidden_layers": 2} for name, shape in models.SMALL.items()}
BATCHES = (1, 16, 64)
STEPS = 32
PROMPT = 128  # tokens before the floor's steps
SECONDS = 400.0  # no batch is begun after so many


def main() -> None:
    """Measure, the smallest batch first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    began = time.monotonic()
    device, dtype = ("cpu", "float32") if options.tiny else ("cuda", "bfloat16")
    batches = (1, 4) if options.tiny else BATCHES
    name = processor() if options.tiny else torch.cuda.get_device_name()
    result: dict[str, Any] = {"device": name, "dtype": dtype}
    with tempfile.TemporaryDirectory() as scratch:
        folders = models.build(Path(scratch), TINY if options.tiny else SHAPES)
        plain = [
            AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
            for folder in folders.values()
        ]
        result["parameters"] = [sum(p.numel() for p in model.parameters()) for model in plain]
        members, say = saying.load(folders, max(batches), {}, device=device, dtype=dtype)
    ensemble = build_ensemble("bench", members, next(iter(members)))
    fuser = Fuser({name: model.member for name, model in members.items()})
    texts = [copied(seed) for seed in range(max(batches))]
    for prompt, answer in texts:
        saying.expect(ensemble, say, prompt, answer)
    prompts = [ensemble.encode_text(prompt) for prompt, _ in texts]
    fuser.start()
    for batch in batches:
        if not options.tiny and time.monotonic() - began > SECONDS:
            break
        answers(fuser, ensemble, prompts[:batch], ensemble.defaults)  # compiles what there is to compile
        floors, rounds = [], []
        for repeat in range(3):
            ids = [torch.randint(3, m.config.vocab_size, (batch, PROMPT), device=device) for m in plain]
            floors.append(lockstep_seconds(plain, ids, STEPS))
            if not options.tiny:
                torch.cuda.synchronize()
            rounds.append(fused_round_seconds(fuser, ensemble, batch, repeat, STEPS))
        row = compare(fuser, ensemble, prompts[: max(batch, 4)], ("ngram", "auto"), batch)
        floor, fused = (1e3 * statistics.median(seconds) for seconds in (floors, rounds))
        measured = {
            "floor_ms": round(floor, 2),
            "round_ms": round(fused, 2),
            "over_floor": round(fused / floor, 3),
        }
        result[str(batch)] = {**measured, "drafts": row}
        print(batch, result[str(batch)], flush=True)
    fuser.stop()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
