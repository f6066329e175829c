"""Random JSON schemas against an ensemble: every finished answer must validate. `python -m tools.schemas`.

Schemas are drawn with a seed; the demo's ensemble and two models of random weights answer each of them, at
temperature 1. Prints one JSON line; exits 1 where an answer does not validate, or a request fails in another way
than with 400.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
from starlette.testclient import TestClient

from server.http.app import create_app
from server.loading import build
from server.settings import read_settings
from tools.bench.models import build as build_random

DEMO = Path(__file__).resolve().parents[1] / "deploy" / "demo.yaml"
KEYS = ["a", "b", "name", "größe", 'q"', "a b", "$x"]
TEXTS: list[Any] = ["a", "b c", 3, None, True, "é", '"', "\n", 1.5, "\\", {"k": [1, "z"]}, [None]]
PATTERNS = ["^[a-f]{2,4}$", "^(yes|no)$", "^\\d{3}-\\d{2}$", "b+c", '^[^"]*$']
FORMATS = ["date", "time", "date-time", "ipv4", "uuid", "email", "hostname", "duration", "uri"]
DEEPEST = 4


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema of the keywords that answers can be held to; they need not all go together."""
    kinds: list[Callable[[random.Random, int], dict[str, Any]]] = [_string, _number, _enum, _plain]
    if depth < DEEPEST:
        kinds += [_object, _object, _array, _any_of, _all_of, _reference]
    return rng.choice(kinds)(rng, depth)


def drawn(seed: int) -> dict[str, Any]:
    """The schema of a seed, with the definitions that it may refer to."""
    rng = random.Random(seed)
    leaf = {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": False}
    return random_schema(rng) | {"$defs": {"leaf": leaf, "text": {"type": "string", "maxLength": 3}}}


def _string(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randint(0, 3)
    chosen: dict[str, Any] = rng.choice(
        [
            {},
            {"minLength": low, "maxLength": low + rng.randint(0, 5)},
            {"pattern": rng.choice(PATTERNS)},
            {"format": rng.choice(FORMATS)},
            {"pattern": "^[a-c]+$", "maxLength": 4},
        ]
    )
    return {"type": "string"} | chosen


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    kind, low = rng.choice(["integer", "number"]), rng.randint(-50, 50)
    bounds: list[dict[str, Any]] = [
        {},
        {"minimum": low},
        {"maximum": low},
        {"minimum": low, "exclusiveMaximum": low + rng.randint(1, 90)},
        {"exclusiveMinimum": low, "maximum": low + 0.5 if kind == "number" else low + 3},
        {"multipleOf": rng.choice([2, 3, 5])} if kind == "integer" else {"minimum": 0, "maximum": 1},
    ]
    return {"type": kind} | rng.choice(bounds)


def _enum(rng: random.Random, depth: int) -> dict[str, Any]:
    if rng.random() < 0.3:
        return {"const": rng.choice(TEXTS)}
    return {"enum": rng.sample(TEXTS, rng.randint(1, 4))}


def _plain(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": rng.choice(["boolean", "null", ["string", "null"], ["integer", "boolean"]])}


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(KEYS, rng.randint(0, 4))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: random_schema(rng, depth + 1) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
    }
    if rng.random() < 0.8:
        schema["additionalProperties"] = rng.choice([False, False, {"type": "integer"}])
    if rng.random() < 0.1:
        schema["patternProperties"] = {"^x_": {"type": "boolean"}}
    if rng.random() < 0.1:
        schema["maxProperties"] = rng.randint(1, 4)
    return schema


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randint(0, 2)
    schema: dict[str, Any] = {"type": "array", "items": random_schema(rng, depth + 1), "minItems": low}
    if rng.random() < 0.8:
        schema["maxItems"] = low + rng.randint(0, 2)
    if rng.random() < 0.2:
        schema["prefixItems"] = [random_schema(rng, depth + 1)]
    return schema


def _any_of(rng: random.Random, depth: int) -> dict[str, Any]:
    return {rng.choice(["anyOf", "oneOf"]): [random_schema(rng, depth + 1) for _ in range(2)]}


def _all_of(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"allOf": [_object(rng, depth + 1), {"type": "object", "properties": {"b": {"type": "integer"}}}]}


def _reference(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{rng.choice(['leaf', 'text'])}"}


def outcome(client: TestClient, model: str, schema: dict[str, Any], seed: int, max_tokens: int = 300) -> str:
    """`valid`, `cut` by the limit, `refused` with 400, or what went wrong."""
    path, body = "/v1/completions", {"model": model, "prompt": "An object in JSON: ", "max_tokens": max_tokens}
    answer = client.post(path, json=body | {"seed": seed, "temperature": 1, "guided_json": schema})
    if answer.status_code == 400:
        return "refused" if answer.json()["error"]["param"] == "guided_json" else answer.text
    if answer.status_code != 200:
        return answer.text
    choice = answer.json()["choices"][0]
    if choice["finish_reason"] != "stop":
        return "cut"
    try:
        jsonschema.Draft202012Validator(schema).validate(json.loads(choice["text"]))
    except (jsonschema.ValidationError, ValueError) as error:
        return f"{json.dumps(schema)} gave {choice['text']}: {error}"
    return "valid"


def main() -> None:
    """Ask for an answer to each schema."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result: dict[str, dict[str, int]] = {}
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        folders = dict(list(build_random(Path(folder)).items())[:2])
        names = list(folders)
        random_weights = {
            "models": {name: {"source": str(path), "dtype": "float32"} for name, path in folders.items()},
            "ensembles": {"random": {"members": names, "pivot": names[0]}},
        }
        (Path(folder) / "random.json").write_text(json.dumps(random_weights))
        for configuration in (DEMO, Path(folder) / "random.json"):
            settings = read_settings(configuration, {})
            runtime = build(settings)
            model = next(iter(settings.ensembles))
            counts: Counter[str] = Counter()
            with TestClient(create_app(runtime.ensembles, runtime.fuser, settings.server)) as client:
                for seed in range(options.seed, options.seed + options.count):
                    found = outcome(client, model, drawn(seed), seed)
                    if found not in ("valid", "cut", "refused"):
                        failures.append(f"{model}, seed {seed}: {found}")
                        found = "failed"
                    counts[found] += 1
            result[model] = dict(counts)
    print(json.dumps(result))
    sys.exit("\n".join(failures) or 0)


if __name__ == "__main__":
    main()
