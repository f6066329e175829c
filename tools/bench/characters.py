"""Characters: bits per byte of texts whose characters the pivot spells in several tokens; lower is better.

Serves an ensemble of models that are already on this machine and asks for the log-probabilities of the texts' own
tokens (`echo`), once around each pivot. Log-probabilities below -20 count as -20. The texts are parts of the
Universal Declaration of Human Rights, in Chinese and Hindi.

    python -m tools.bench.characters FOLDER FOLDER ... [--texts tools/bench/declaration.jsonl]
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections import defaultdict
from pathlib import Path

import httpx
import yaml

from tools.soak import serving

LEAST = -20.0


def bits_per_byte(url: str, model: str, texts: list[dict[str, str]]) -> dict[str, float]:
    """By language, from the second token of each text on."""
    nats, size = defaultdict(float), defaultdict(int)
    for entry in texts:
        body = {"model": model, "prompt": entry["text"], "max_tokens": 1, "echo": True, "logprobs": 1}
        answer = httpx.post(
            f"{url}/v1/completions", json=body | {"temperature": 0}, timeout=600
        ).raise_for_status()
        given = answer.json()["choices"][0]["logprobs"]["token_logprobs"][:-1]
        nats[entry["language"]] -= sum(max(logprob, LEAST) for logprob in given if logprob is not None)
        size[entry["language"]] += len(entry["text"].encode())
    return {language: round(nats[language] / size[language] / math.log(2), 4) for language in size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--texts", type=Path, default=Path(__file__).with_name("declaration.jsonl"))
    given = parser.parse_args()
    texts = [json.loads(line) for line in given.texts.read_text(encoding="utf-8").splitlines()]
    folders = {folder.name: folder.resolve() for folder in given.models}
    config = {
        "models": {name: {"source": str(folder), "dtype": "float32"} for name, folder in folders.items()},
        "ensembles": {f"around-{name}": {"members": [*folders], "pivot": name} for name in folders},
    }
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "tutti.yaml"
        path.write_text(yaml.safe_dump(config))
        with serving(path, Path(scratch) / "log.txt") as served:
            for name in [*config["models"], *config["ensembles"]]:
                found[name] = bits_per_byte(served.url, name, texts)
                print(f"{name:24}", found[name], flush=True)
    print(json.dumps({"benchmark": "characters", "bits_per_byte": found}))


if __name__ == "__main__":
    main()
