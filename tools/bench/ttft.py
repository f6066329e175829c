"""Time to the first token with weights measured on the prompt, against uniform weights.

Scoring adds the head (and for packllm-opt the search of the best tokens) at the scored positions, so what it costs
depends on how large the head is beside the rest. Here it is a tenth, as in models of seven to nine billion
parameters. The models of the decoding benchmark, whose heads are as large as their bodies, would show several
times the cost of any model in use.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from pathlib import Path

import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from alignment.text.tokenizer import Tokenizer
from fusion.assembly.ensembles import build_ensemble
from fusion.core import Delta, End
from fusion.ensemble import Ensemble, Model
from fusion.loop.fuser import Fuser
from fusion.members.hosts.inline import InlineMember
from fusion.members.transformers.engine import TransformersEngine
from fusion.options import FusionParams, SamplingParams, Weighting
from tools.bench.models import prompt, tokenizers

LENGTHS = (64, 512, 2048)
VOCABULARIES = {"llama": 8000, "qwen2": 7000, "neox": 6000}
METHODS = {
    "uniform": Weighting(),
    "packllm-sim": Weighting("packllm-sim"),
    "packllm-opt": Weighting("packllm-opt"),
}


def build(folder: Path) -> dict[str, Path]:
    """Three random models of about 40 million parameters, a tenth of them the head."""
    torch.manual_seed(0)
    common = {
        "hidden_size": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    kinds = {
        "llama": (LlamaForCausalLM, LlamaConfig, {"intermediate_size": 1408, "num_key_value_heads": 8}),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"intermediate_size": 1408, "num_key_value_heads": 2}),
        "neox": (GPTNeoXForCausalLM, GPTNeoXConfig, {"intermediate_size": 2048}),
    }
    for name, tokenizer in tokenizers(VOCABULARIES).items():
        model, config, inner = kinds[name]
        size = tokenizer.get_vocab_size()
        model(config(vocab_size=size, **inner, **common)).eval().save_pretrained(folder / name)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        ).save_pretrained(folder / name)
    return {name: folder / name for name in kinds}


def text_of(tokenizer: Tokenizer, length: int, seed: int) -> str:
    """A text of about this many tokens."""
    words = prompt(length, seed).split()
    while len(tokenizer.encode(" ".join(words), add_special_tokens=True)) > length:
        words.pop()
    return " ".join(words)


def first_token_seconds(fuser: Fuser, ensemble: Ensemble, text: str, weighting: Weighting) -> float:
    """From the text to the first token, tokenising included."""
    arrived = threading.Event()
    errors: list[Exception] = []

    def on_update(update: Delta) -> None:
        if isinstance(update, End) and update.error is not None:
            errors.append(update.error)
        arrived.set()

    fusion = FusionParams(weighting=weighting)
    start = time.perf_counter()
    encoded = ensemble.encode_text(text, locate=ensemble.scores(fusion))
    fuser.submit(ensemble, encoded, SamplingParams(max_tokens=1, temperature=0.0), fusion, on_update=on_update)
    assert arrived.wait(300)
    seconds = time.perf_counter() - start
    if errors:
        raise errors[0]
    return seconds


def run(folders: dict[str, Path], *, lengths: tuple[int, ...] = LENGTHS, repeats: int = 7) -> dict[str, object]:
    """The fastest of `repeats` in milliseconds, and its ratio to that with uniform weights; by length.

    The ways take turns, and the fastest is what other work on the machine disturbs least.
    """
    models = {}
    for name, folder in folders.items():
        engine = TransformersEngine.load(str(folder), cache_tokens=2 * max(lengths) + 64, max_sequences=2)
        models[name] = Model(InlineMember(name, engine), Tokenizer.load(str(folder)), (2,), str(folder))
    ensemble = build_ensemble("bench", models, next(iter(models)))
    fuser = Fuser({name: model.member for name, model in models.items()})
    fuser.start()
    results: dict[str, object] = {}
    try:
        for length in lengths:
            seconds: dict[str, list[float]] = {method: [] for method in METHODS}
            for repeat in range(-1, repeats):
                for number, (method, weighting) in enumerate(METHODS.items()):
                    # Another text every time: none may profit from the scores of the one before.
                    text = text_of(ensemble.tokenizer, length, seed=100 * (repeat + 1) + number)
                    taken = first_token_seconds(fuser, ensemble, text, weighting)
                    if repeat >= 0:  # the first warms up
                        seconds[method].append(taken)
            fastest = {method: min(taken) for method, taken in seconds.items()}
            results[str(length)] = {
                method: {"ms": 1e3 * taken, "ratio": taken / fastest["uniform"]}
                for method, taken in fastest.items()
            }
    finally:
        fuser.stop()
    return results


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        results = run(build(Path(scratch)))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
