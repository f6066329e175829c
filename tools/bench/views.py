"""Views of one model against the model alone: time of a round, and memory of the weights.

    python -m tools.bench.views

One of the benchmark's models of 30M parameters, as an ensemble of one, as four views that differ in their prompts,
and as three adapters of rank 16 beside the bare model. All are measured in turn in one process, and so are the
products of the model's linear layers alone, which no round does without: over one row per sequence, and over four.
Last, processor time per token of the demo's ensemble of adapters over that of its ensemble of models.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from alignment.text.tokenizer import Tokenizer
from fusion.assembly.ensembles import build_ensemble
from fusion.ensemble import Ensemble, Model
from fusion.loop.fuser import Fuser
from fusion.members.hosts.inline import InlineMember
from fusion.members.transformers.engine import TransformersEngine
from fusion.members.transformers.linear import pack_linear_layers
from fusion.teams import release_team
from fusion.views import ModelView
from tools.bench.asked import milliseconds_a_token
from tools.bench.decode import fused_round_seconds
from tools.bench.models import build

MODEL = "llama"
RANK = 16
SEQUENCES = (1, 8)
VIEWS = 4
TOKENS = 48


def write_adapter(folder: Path, model: torch.nn.Module, seed: int) -> None:
    """A random adapter of all linear layers between the embeddings."""
    torch.manual_seed(seed)
    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            key = f"base_model.model.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, module.in_features) * 0.02
            tensors[f"{key}.lora_B.weight"] = torch.randn(module.out_features, RANK) * 0.02
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": "all-linear"}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def ensembles(base: Model, adapters: list[str]) -> dict[str, Ensemble]:
    """What is compared, by name."""

    def views(*shown: ModelView) -> Ensemble:
        models = {view.name: replace(base, view=view) for view in shown}
        return build_ensemble("views", models, shown[0].name)

    prompts = [ModelView(f"view{index}", context=f"{index} {'ban ' * 8}") for index in range(VIEWS)]
    adapted = [ModelView(f"adapter{index}", name) for index, name in enumerate(adapters)]
    return {
        "one": build_ensemble("one", {base.name: base}, base.name),
        "views": views(*prompts),
        "adapters": views(ModelView("bare"), *adapted),
    }


@torch.inference_mode()
def products_seconds(model: torch.nn.Module, rows: int) -> float:
    """Seconds of all linear layers of a model, one after another, over so many rows."""
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    inputs = {layer.in_features: torch.randn(1, rows, layer.in_features) for layer in layers}
    times = []
    for _ in range(20):
        start = time.perf_counter()
        for layer in layers:
            layer(inputs[layer.in_features])
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def run(folder: Path, repeats: int = 5) -> dict[str, object]:
    """Measure; returns milliseconds of a round and their ratio to one view's."""
    source = build(folder)[MODEL]
    bare = AutoModelForCausalLM.from_pretrained(source)
    weights = sum(weight.nbytes for weight in bare.parameters())
    names = [f"adapter{index}" for index in range(VIEWS - 1)]
    for index, name in enumerate(names):
        write_adapter(folder / name, bare, index)
    rows = max(SEQUENCES) * VIEWS
    engine = TransformersEngine.load(
        str(source),
        cache_tokens=rows * 512,
        max_sequences=rows,
        adapters={name: str(folder / name) for name in names},
    )
    adapters = engine.adapters_nbytes
    pack_linear_layers(bare)
    base = Model(InlineMember("base", engine), Tokenizer.load(str(source)), (2,), str(source))
    compared = ensembles(base, names)
    fuser = Fuser({"base": base.member})
    fuser.start()
    result: dict[str, object] = {"weights_ratio": round((weights + adapters) / weights, 3)}
    try:
        for sequences in SEQUENCES:
            times: dict[str, list[float]] = {name: [] for name in compared}
            products: list[tuple[float, float]] = []
            for repeat in range(repeats + 1):
                for name, ensemble in compared.items():
                    seconds = fused_round_seconds(fuser, ensemble, sequences, seed=100 * repeat, tokens=TOKENS)
                    if repeat:  # the first warms up
                        times[name].append(seconds)
                few, many = (products_seconds(bare, n) for n in (sequences, VIEWS * sequences))
                release_team()  # of this thread, which would wait beside the fuser's
                if repeat:
                    products.append((few, many))
            medians = {name: statistics.median(found) for name, found in times.items()}
            result[str(sequences)] = {
                **{f"{name}_ms": round(1e3 * value, 3) for name, value in medians.items()},
                **{
                    f"{name}_ratio": round(
                        statistics.median(a / b for a, b in zip(times[name], times["one"], strict=True)), 3
                    )
                    for name in ("views", "adapters")
                },
                "products_ms": [round(1e3 * statistics.median(found), 3) for found in zip(*products, strict=True)],
                "products_ratio": round(statistics.median(many / few for few, many in products), 3),
            }
    finally:
        fuser.stop()
    return result


def main() -> None:
    """Print one JSON object."""
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder))
    spent = milliseconds_a_token("demo.yaml", ["tutti-demo"]) | milliseconds_a_token(
        "demo-views.yaml", ["tutti-views"]
    )
    result["demo"] = spent | {"ratio": spent["tutti-views"] / spent["tutti-demo"]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
