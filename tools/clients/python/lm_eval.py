"""EleutherAI's evaluation harness by its command, on a few of the demo's questions; run from Tutti's folder."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.clients.python.cases import MODEL, URL, run


def evaluated(kind: str, path: str, task: str, *options: str, **arguments: str) -> dict[str, float]:
    given = {"base_url": f"{URL}/{path}", "model": MODEL, "num_concurrent": "4", **arguments}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lm_eval", "run", "--model", kind, "--tasks", task, "--limit", "4"]
        command += ["--model_args", ",".join(f"{name}={value}" for name, value in given.items())]
        command += ["--include_path", "deploy/demo/lm_eval", "--output_path", folder, *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-500:]
        (results,) = Path(folder).rglob("results_*.json")
        return json.loads(results.read_text())["results"][task]


def local_chat_completions():
    found = evaluated("local-chat-completions", "chat/completions", "tutti_demo", "--apply_chat_template")
    assert 0 <= found["exact_match,none"] <= 1


def local_completions():
    found = evaluated("local-completions", "completions", "tutti_demo_text", tokenizer_backend="none")
    assert 0 <= found["exact_match,none"] <= 1


def local_completions_by_likelihood():
    local = {"tokenizer_backend": "huggingface", "tokenizer": "deploy/demo/models/lingvo"}
    found = evaluated("local-completions", "completions", "tutti_demo_choice", **local)
    assert 0 <= found["acc,none"] <= 1


if __name__ == "__main__":
    run("lm-eval", local_chat_completions, local_completions, local_completions_by_likelihood)
