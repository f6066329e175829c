"""LoRA adapters in peft's folder format: their layers, and whether a model can take them. Reads no weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.errors import ConfigError
from alignment.files import open_tensors
from fusion.members.checkpoint import PICKLES, json_object

WEIGHTS = "adapter_model.safetensors"
_NAME = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight$")
# Options of peft that change what an adapter computes, or the weights under it, in a way that is not built.
_OTHER = {
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "layer_replication": "replicated layers",
    "lora_bias": "biases of its own",
    "modules_to_save": "layers trained in full",
    "target_parameters": "bare parameters",
    "trainable_token_indices": "trained embeddings",
    "use_bdlora": "block-diagonal factors",
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "velora_config": "VeLoRA",
}
_OF_ITS_OWN_BASE = ("corda", "loftq", "lora_ga", "olora", "pissa")


@dataclass(frozen=True, slots=True)
class Factors:
    """The update of one linear layer, scaling * up (down x): its tensors' names, sizes and scaling."""

    down: str
    up: str
    inputs: int
    outputs: int
    rank: int
    scaling: float


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter on disk: its weights' file, and its factors by the module of the base that they change."""

    folder: str
    file: Path
    layers: Mapping[str, Factors]

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(factors.rank for factors in self.layers.values())


def read_adapter(folder: str) -> AdapterFile:
    """Read the configuration of an adapter and the shapes of its tensors.

    Raises:
        ConfigError: the folder is no LoRA adapter of peft in safetensors, or one of a kind that is not built.
    """
    config = _config(folder)
    _require_built(folder, config)
    file = Path(folder, WEIGHTS)
    if not file.is_file():
        pickles = sorted(path.name for path in Path(folder).iterdir() if path.suffix in PICKLES)
        found = f"only {pickles[0]}, a pickle, which can run code and is never loaded" if pickles else "no weights"
        raise ConfigError(f"{folder} has {found}; save the adapter with safe_serialization (as {WEIGHTS}).")
    with open_tensors(file) as content:
        shapes = {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
    return AdapterFile(folder, file, _layers(folder, config, shapes))


def require_fits(adapter: AdapterFile, model: Any) -> None:
    """Raise ConfigError unless every layer of the adapter is a linear layer of the model and has its shape."""
    modules = dict(model.named_modules())
    for name, factors in adapter.layers.items():
        module = modules.get(name)
        if module is None:
            raise ConfigError(
                f"{adapter.folder} is an adapter of another model: this one, a {type(model).__name__}, has no "
                f"layer {name}."
            )
        shape = linear_shape(module)
        if shape is None:
            raise ConfigError(
                f"{adapter.folder} changes {name}, a {type(module).__name__}; only linear layers can be."
            )
        if shape != (factors.inputs, factors.outputs):
            raise ConfigError(
                f"{adapter.folder} is an adapter of another model: it takes {name} from {factors.inputs} to "
                f"{factors.outputs} values, this one from {shape[0]} to {shape[1]}."
            )


def linear_shape(module: Any) -> tuple[int, int] | None:
    """The inputs and outputs of a linear layer; None for any other module."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return module.nx, module.nf
    return None


def _config(folder: str) -> dict[str, Any]:
    path = Path(folder, "adapter_config.json")
    if not path.is_file():
        raise ConfigError(
            f"{folder} has no adapter_config.json; give the folder that peft's save_pretrained wrote."
        )
    return json_object(path, folder)


def _require_built(folder: str, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise ConfigError(
            f"{folder} is an adapter of the type {config.get('peft_type')!r:.40}; only LORA is built: train that."
        )
    for option, what in _OTHER.items():
        if config.get(option):
            raise ConfigError(f"{folder} uses {option} ({what}), which is not built; train a plain LoRA.")
    if config.get("bias", "none") != "none":
        raise ConfigError(
            f"{folder} trains biases (bias: {config['bias']!r:.40}), which is not built: train a plain LoRA."
        )
    initial = config.get("init_lora_weights")
    if isinstance(initial, str) and initial.lower().startswith(_OF_ITS_OWN_BASE):
        raise ConfigError(
            f"{folder} begins from weights of its own (init_lora_weights: {initial!r:.40}); convert it to a plain "
            "LoRA (peft's path_initial_model_for_weight_conversion)."
        )


def _layers(folder: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Factors]:
    parts: dict[str, dict[str, str]] = {}
    for name in shapes:
        match = _NAME.match(name)
        if match is None:
            kind = "trained embeddings" if "embed" in name else "DoRA" if "magnitude" in name else "more than LoRA"
            raise ConfigError(f"{folder} holds {name} ({kind}), which is not built; train a plain LoRA.")
        parts.setdefault(match["module"], {})[match["part"]] = name
    if not parts:
        raise ConfigError(
            f"{folder} holds no weights of a LoRA: give the folder that peft's save_pretrained wrote."
        )
    layers = {}
    for module, names in parts.items():
        down, up = (shapes.get(names.get(part, ""), ()) for part in "AB")
        if len(down) != 2 or len(up) != 2 or down[0] != up[1] or not down[0]:
            raise ConfigError(f"{folder}: lora_A and lora_B of {module} do not go together; save it again.")
        layers[module] = Factors(
            names["A"], names["B"], down[1], up[0], down[0], _scaling(folder, config, module, down[0])
        )
    return layers


def _scaling(folder: str, config: Mapping[str, Any], module: str, rank: int) -> float:
    """As peft has it: alpha / r, with rslora alpha / sqrt(r); a pattern may give a layer an alpha of its own."""
    pattern = config.get("alpha_pattern") or {}
    try:
        own = next((key for key in pattern.keys() if re.match(rf"(.*\.)?({key})$", module)), None)  # noqa: SIM118
    except (AttributeError, re.error) as error:
        raise ConfigError(
            f"{folder}: alpha_pattern is {pattern!r:.60}, which names no layers ({error}); save it again."
        ) from None
    alpha = config.get("lora_alpha") if own is None else pattern[own]
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ConfigError(f"{folder}: lora_alpha is {alpha!r:.40}; it should be a number.")
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)
