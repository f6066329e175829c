"""lm-evaluation-harness runs against a server, with their results printed as JSON.

    python -m tests.support.lm_eval_runs URL [ENSEMBLE]

All runs are of the demo's ensemble; with another one, multiple choice alone. Printed is, by run: the `accuracy`,
and by question what was said (`said`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.demo import ENSEMBLE, MODELS, REPOSITORY

MEMBER, PIVOT = "almanac", "lingvo"


def results(folder: Path, *arguments: str) -> dict[str, Any]:
    """What the runs find, in a process of their own whose working directory, with the questions, is `folder`."""
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "OPENAI_API_KEY": "none"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.lm_eval_runs", *arguments],
        cwd=folder,
        env=os.environ | offline | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def main(url: str, other: str | None = None) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(REPOSITORY / "deploy" / "demo" / "lm_eval"), include_defaults=False)

    def run(task: str, metric: str, path: str, served: str, *, chat: bool = True, **arguments: Any) -> Any:
        kind = "local-chat-completions" if path == "chat/completions" else "local-completions"
        results = simple_evaluate(
            model=kind,
            model_args={"base_url": f"{url}/v1/{path}", "model": served, "num_concurrent": 8, **arguments},
            tasks=[task],
            task_manager=tasks,
            apply_chat_template=chat,
            bootstrap_iters=0,
        )
        return {
            "accuracy": results["results"][task][f"{metric},none"],
            "said": {sample["doc"]["id"]: sample["resps"][0][0] for sample in results["samples"][task]},
        }

    local = {"tokenizer_backend": "huggingface"}
    member, pivot = (local | {"tokenizer": str(MODELS / name)} for name in (MEMBER, PIVOT))
    text = {"chat": False, "tokenizer_backend": "none"}
    by_text = ("tutti_demo_text", "exact_match", "completions")
    if other is not None:
        print(json.dumps({"choice": run("tutti_demo_choice", "acc", "completions", other, **pivot)}))
        return
    print(
        json.dumps(
            {
                "chat": run("tutti_demo", "exact_match", "chat/completions", ENSEMBLE),
                "rendered": run("tutti_demo", "exact_match", "completions", MEMBER, **member),
                "text": run(*by_text, ENSEMBLE, **text),
                "ids": run(*by_text, ENSEMBLE, chat=False),  # the default: ids of the server's own tokenizer
                "member's text": run(*by_text, MEMBER, **text),
                "choice": run("tutti_demo_choice", "acc", "completions", ENSEMBLE, **pivot),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
