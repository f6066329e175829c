"""Clients against one served ensemble: `python -m tools.clients PYTHON [NAME ...]`, or `make clients`.

PYTHON is the interpreter of the clients' own environment (`tools/clients/python.lock`); the SDKs that this one has
are run in it too. Names choose among the clients. A line is printed for each client and case; the exit status is 1
where a case failed or a client printed none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.demo import CONFIG, ENSEMBLE, REPOSITORY
from tests.support.serving import serving

OURS = ("openai", "anthropic", "lm_eval", "vllm_bench")
THEIRS = (
    "openai",
    "anthropic",
    "litellm",
    "langchain",
    "llama_index",
    "instructor",
    "pydantic_ai",
    "openai_agents",
)
NODE = ("openai", "anthropic", "ai")
SECONDS = 3600


def commands(python: str) -> Iterator[tuple[str, list[str]]]:
    """Every client with the command that runs it."""
    for interpreter, names in ((sys.executable, OURS), (python, THEIRS)):
        for name in names:
            yield name, [interpreter, "-m", f"tools.clients.python.{name}"]
    for name in NODE:
        yield name, ["node", f"tools/clients/node/{name}.mjs"]


def run(command: list[str], environment: dict[str, str]) -> Iterator[tuple[bool, str]]:
    """Whether each case went well, with its line."""
    with tempfile.TemporaryFile("w+") as errors:
        client = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        cases = 0
        assert client.stdout is not None
        for line in client.stdout:
            if not line.startswith('{"client"'):
                continue
            case = json.loads(line)
            cases += 1
            well = case["failed"] is None
            title = f"{case['client']} {case['version']}, {case['case']}"
            yield well, f"{'ok    ' if well else 'FAILED'} {title}" + ("" if well else f": {case['failed']}")
        if client.wait(timeout=SECONDS) or not cases:
            errors.seek(0)
            yield False, f"FAILED {' '.join(command[-2:])} ended with {client.returncode}: {errors.read()[-500:]}"


def main(python: str, names: list[str]) -> bool:
    """Return whether all went well."""
    well = True
    with tempfile.TemporaryDirectory() as folder, serving(CONFIG, Path(folder, "server.log")) as server:
        environment = os.environ | {
            "TUTTI_URL": server.url,
            "TUTTI_MODEL": ENSEMBLE,
            "PYTHONPATH": str(REPOSITORY),
            "OPENAI_API_KEY": "none",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "HF_HOME": folder,
        }
        for name, command in commands(python):
            if names and name not in names:
                continue
            for fine, line in run(command, environment):
                well &= fine
                print(line, flush=True)
    return well


if __name__ == "__main__":
    sys.exit(0 if main(sys.argv[1], sys.argv[2:]) else 1)
