"""Rounds under a JSON schema over plain ones, with a pivot of 130,000 tokens: `python -m tools.bench.structured`.

Two random models on the transformers engine, in turns without a schema, with one of texts, whose rounds differ by
the mask, and with one of records, whose keys are forced and read in the same passes; at 1 and at 16 sequences.
Prints one JSON line: milliseconds a round, the schemas' over the plain ones, and milliseconds a token of records;
and, for a schema with keys that are forced, how many tokens an answer has for each pass of a member.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fusion.assembly.ensembles import build_ensemble
from fusion.core import Delta, End
from fusion.ensemble import Ensemble
from fusion.loop.fuser import Fuser
from fusion.options import SamplingParams
from fusion.sequence.constraint import Constraint
from fusion.sequence.grammar import json_schema
from tools.bench.decode import load
from tools.bench.models import SMALL, SPECIALS, prompt, random_models

NAMES = ("llama", "neox")  # the pivot first
PIVOT_TOKENS = 130_000
TOKENS = 48
TEXTS: dict[str, Any] = {"type": "array", "minItems": 1000, "items": {"type": "string", "maxLength": 40}}
RECORDS: dict[str, Any] = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "count": {"type": "integer", "minimum": 0, "maximum": 999},
            "note": {"type": "string", "maxLength": 40},
        },
        "required": ["name", "count", "note"],
        "additionalProperties": False,
    },
}
FORCED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "customer_identifier": {"type": "integer", "minimum": 0, "maximum": 99},
        "shipping_address_country": {"enum": ["Switzerland", "Italy", "Austria"]},
        "preferred_contact_method": {"enum": ["telephone", "letter"]},
        "requires_confirmation": {"type": "boolean"},
    },
    "required": [
        "customer_identifier",
        "shipping_address_country",
        "preferred_contact_method",
        "requires_confirmation",
    ],
    "additionalProperties": False,
}


def build(folder: Path) -> None:
    """Write a Llama with the large vocabulary and a GPT-NeoX with a small one, as Hugging Face folders.

    Most of the large vocabulary are words of two syllables without a merge that leads to them, which text is never
    cut into, but which may be drawn and are masked like any other.
    """
    lines = [prompt(200, seed) for seed in range(100)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, special_tokens=SPECIALS, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(lines, trainer)
    large = json.loads(tokenizer.to_str())
    syllables = [a + v + e for a in "bcdfghjklmnprstvwz" for v in "aeiou" for e in ("", "n", "r", "s")]
    vocabulary = large["model"]["vocab"]
    for one, other in itertools.product(syllables, syllables):
        if len(vocabulary) < PIVOT_TOKENS:
            vocabulary.setdefault(f"Ġ{one}{other}", len(vocabulary))
    built = {NAMES[0]: Tokenizer.from_str(json.dumps(large)), NAMES[1]: tokenizer}
    sizes = {name: one.get_vocab_size() for name, one in built.items()} | {"qwen2": 100}
    for name, model in random_models(sizes, SMALL).items():
        if name in built:
            model.save_pretrained(folder / name)
            fast = PreTrainedTokenizerFast(
                tokenizer_object=built[name], bos_token="<s>", eos_token="</s>", unk_token="<unk>"
            )
            fast.save_pretrained(folder / name)


def timed(
    fuser: Fuser, ensemble: Ensemble, schema: dict[str, Any] | None, sequences: int, seed: int, tokens: int
) -> tuple[float, float, float]:
    """Seconds a round after the first, and tokens and rounds of an answer in the mean."""
    begun, ends = [0.0] * sequences, [0.0] * sequences
    counts, rounds = [0] * sequences, [0] * sequences
    done = threading.Semaphore(0)

    def on_update(index: int, update: Delta) -> None:
        now = time.perf_counter()
        counts[index] += len(update.tokens)
        if update.tokens and update.tokens[0].chosen.logprob < 0:  # not forced: the prompt has been read
            begun[index] = begun[index] or now
        if isinstance(update, End):
            assert update.error is None, update.error
            assert update.account is not None
            ends[index], rounds[index] = now, update.account.rounds
            done.release()

    for index in range(sequences):
        text = ensemble.encode_text(prompt(32, seed + index))
        if schema is not None:
            constraint = Constraint(ensemble.first.grammar_table, grammar=json_schema(schema))
            text = replace(text, constraints={ensemble.pivot: constraint})
        sampling = SamplingParams(tokens, temperature=1.0, seed=seed + index, ignore_eos=schema is None)
        fuser.submit(
            ensemble,
            text,
            sampling,
            ensemble.defaults,
            on_update=lambda update, index=index: on_update(index, update),  # type: ignore[misc]
        )
    for _ in range(sequences):
        done.acquire()
    seconds = [(end - start) / max(number - 1, 1) for start, end, number in zip(begun, ends, rounds, strict=True)]
    return statistics.mean(seconds), statistics.mean(counts), statistics.mean(rounds)


def run(folders: dict[str, Path], repeats: int = 5) -> dict[str, Any]:
    """Measure, with the first of the models as the pivot."""
    loaded = load(folders, 16)
    ensemble = build_ensemble("bench", loaded, next(iter(loaded)))
    fuser = Fuser({name: model.member for name, model in loaded.items()})
    fuser.start()
    result: dict[str, Any] = {"pivot_tokens": ensemble.tokenizer.vocabulary_size}
    try:
        for sequences in (1, 16):
            times: dict[str, list[float]] = {"plain": [], "texts": [], "records": []}
            per_token = []
            for repeat in range(repeats + 1):
                for way, schema in (("plain", None), ("texts", TEXTS), ("records", RECORDS)):
                    seconds, tokens, rounds = timed(fuser, ensemble, schema, sequences, 1000 * repeat, TOKENS)
                    if repeat:  # the first warms up
                        times[way].append(seconds)
                        if way == "records":
                            per_token.append(seconds * rounds / tokens)
            found = {way: round(1000 * statistics.median(values), 3) for way, values in times.items()}
            for way in ("texts", "records"):
                ratios = [a / b for a, b in zip(times[way], times["plain"], strict=True)]
                found[f"{way}_ratio"] = round(statistics.median(ratios), 3)
            result[str(sequences)] = found | {"records_token": round(1000 * statistics.median(per_token), 3)}
        _, tokens, rounds = timed(fuser, ensemble, FORCED, 4, 5, 400)
        result["forced"] = {"tokens": tokens, "passes": rounds, "tokens_a_pass": round(tokens / rounds, 2)}
    finally:
        fuser.stop()
    return result


def main() -> None:
    """Build the models and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", type=Path, help="folder in which the models are kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.models or Path(scratch)
        kept = {name: folder / name for name in NAMES}
        if not all((path / "config.json").exists() for path in kept.values()):
            build(folder)
        result = run(kept, options.repeats)
    print(json.dumps({"processor_threads": os.cpu_count(), **result}))


if __name__ == "__main__":
    main()
