from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3Config, LlamaConfig, MistralConfig, PhimoeConfig

from alignment.errors import ConfigError
from fusion.members.transformers.architecture import context_length, examine, why_not_packed


def model(**config):
    return SimpleNamespace(config=LlamaConfig(**config))


@pytest.mark.parametrize(
    ("limit", "rope", "context"),
    [
        (128, {"rope_type": "default"}, 128),
        (128, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        (512, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        (128, {"rope_type": "linear", "factor": 2.0}, 256),
        (128, {"rope_type": "dynamic", "factor": 2.0}, 128),
        (1024, {"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 128}, 1024),
    ],
)
def test_scaled_positions_scale_the_context(limit, rope, context):
    if rope["rope_type"] == "llama3":
        rope = rope | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled = model(max_position_embeddings=limit, rope_parameters=rope | {"rope_theta": 10000.0})
    assert context_length(scaled, None) == context
    assert context_length(scaled, context) == context
    with pytest.raises(ConfigError, match=f"more than the {context} tokens"):
        context_length(scaled, context + 1)


@pytest.mark.parametrize(("window", "packed"), [(8, False), (None, True)])
def test_a_window_that_only_the_mask_knows_is_not_packed(window, packed):
    """Attention of our own is not given the mask."""
    small = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    for config, told in ((PhimoeConfig, False), (MistralConfig, True)):
        with torch.device("meta"):
            made = AutoModelForCausalLM.from_config(config(**small, sliding_window=window))
        assert (why_not_packed(made) is None) == (packed or told)


def test_a_tower_for_images_has_no_say_in_the_window():
    text = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8}
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(Gemma3Config(text_config=text, vision_config=tower))
    assert any("Siglip" in type(module).__name__ for module in made.modules())
    assert why_not_packed(made) is None


def test_layers_that_are_not_scaled_bound_the_context():
    kinds = {
        "full_attention": {"rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_type": "default"},
    }
    config = SimpleNamespace(max_position_embeddings=1024, rope_parameters=kinds)
    config.get_text_config = lambda decoder: config
    assert context_length(SimpleNamespace(config=config), None) == 1024


def test_a_package_that_quantised_weights_need_is_named():
    config = LlamaConfig(quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(
        ConfigError, match=r"gptq, for which .* optimum and gptqmodel: pip install optimum gptqmodel"
    ):
        examine(config, "some/model", revision=None, trust_remote_code=False, max_context=None)
