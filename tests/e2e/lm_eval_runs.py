"""Runs lm-evaluation-harness against a server and prints the accuracies as JSON; argument: the server's URL."""

from __future__ import annotations

import json
import sys
from typing import Any

from tests.e2e.demo import ENSEMBLE, MODELS, REPOSITORY

MEMBER, PIVOT = "almanac", "lingvo"


def accuracy(task: str, metric: str, model: str, served: str, url: str, **arguments: Any) -> float:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    results = simple_evaluate(
        model=model,
        model_args={"base_url": url, "model": served, "num_concurrent": 8, **arguments},
        tasks=[task],
        task_manager=TaskManager(include_path=str(REPOSITORY / "deploy" / "demo" / "lm_eval")),
        apply_chat_template=True,
        log_samples=False,
        bootstrap_iters=0,
    )
    return results["results"][task][f"{metric},none"]


def main(url: str) -> None:
    chats, texts = f"{url}/v1/chat/completions", f"{url}/v1/completions"
    local = {"tokenizer_backend": "huggingface"}
    member, pivot = (local | {"tokenizer": str(MODELS / name)} for name in (MEMBER, PIVOT))
    print(
        json.dumps(
            {
                "chat": accuracy("tutti_demo", "exact_match", "local-chat-completions", ENSEMBLE, chats),
                "member": accuracy("tutti_demo", "exact_match", "local-completions", MEMBER, texts, **member),
                "choice": accuracy("tutti_demo_choice", "acc", "local-completions", ENSEMBLE, texts, **pivot),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
