"""Loading checks: the share of a server's start that goes into checking a checkpoint, for a large vocabulary.

A model of two small layers with the tokenizer and the chat template of a folder is opened and loaded in a process
of its own, as a server does it. Its weights take no time to read, so the share is the largest that a model with
this vocabulary can have. Processor time is counted, of the libraries' threads as well.

    python -m tools.bench.loading [--tokenizer ../shared/tokenizers/qwen]
"""

from __future__ import annotations

import argparse
import json
import pkgutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUNS = 3
# What only compares, probes or measures: without it every sound checkpoint would be served as it is with it.
CHECKS = {
    "file": "alignment.text.tokenizer:as_the_file_says",
    "lossless": "alignment.text.tokenizer:require_lossless",
    "template": "alignment.text.template:Template.frames",
    "repairs": "alignment.text.template:Template.findings",
    "control tokens": "alignment.text.tokenizer:control_ids",
    "lengths": "alignment.text.tokenizer:Lengths.of",
    "ends": "fusion.assembly.checkpoints:ordered_stops",
    "ids": "fusion.assembly.checkpoints:_check_vocabulary",
    "files": "fusion.assembly.checkpoints:weight_files",
    "architecture": "fusion.assembly.checkpoints:_examined",
    "adapters": "fusion.assembly.runtime:require_adapters",
    "plain pass": "fusion.members.transformers.check:PlainPass.__init__",
    "same answers": "fusion.members.transformers.check:PlainPass.require_same",
}


def start(folder: str) -> dict[str, float]:
    """Seconds of processor time of a start and of each check in it, in this process, which has just begun."""
    spent: Counter[str] = Counter()
    running: list[str] = []

    def timed(name: str, check: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            if running:  # a check inside a check
                return check(*arguments, **options)
            running.append(name)
            began = time.process_time()
            try:
                return check(*arguments, **options)
            finally:
                spent[name] += time.process_time() - began
                running.pop()

        return run

    for name, path in CHECKS.items():
        holder, _, attribute = path.replace(":", ".").rpartition(".")
        setattr(pkgutil.resolve_name(holder), attribute, timed(name, pkgutil.resolve_name(path)))
    from server.loading import build
    from server.settings.read import read_settings

    runtime = build(read_settings(Path(folder, "tutti.yaml")))
    runtime.fuser.start()
    whole = time.process_time()
    runtime.fuser.stop()
    return {"start": whole, **spent}


def make(folder: Path, tokenizer: str) -> None:
    """Write a small model with this tokenizer into `folder`, and a configuration that serves it."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    hf = AutoTokenizer.from_pretrained(tokenizer)
    hf.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(hf),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=hf.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    Path(folder, "tutti.yaml").write_text(json.dumps({"models": {"large": {"source": str(folder)}}}))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--tokenizer", default="../shared/tokenizers/qwen")
    arguments.add_argument("--start", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.start:
        print(json.dumps(start(options.start)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.tokenizer)
        command = [sys.executable, "-m", "tools.bench.loading", "--start", folder]
        runs = [json.loads(subprocess.check_output(command).splitlines()[-1]) for _ in range(RUNS)]
    best = {name: min(run.get(name, 0.0) for run in runs) for name in ("start", *CHECKS)}
    for name, seconds in best.items():
        print(f"{name:16} {seconds:7.3f} s")
    checks = sum(best[name] for name in CHECKS)
    print(
        json.dumps(
            {
                "benchmark": "loading",
                "start_s": best["start"],
                "checks_s": checks,
                "checks_over_the_rest": checks / (best["start"] - checks),
            }
        )
    )


if __name__ == "__main__":
    main()
