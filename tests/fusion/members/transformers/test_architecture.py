from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import LlamaConfig

from alignment.errors import ConfigError
from fusion.members.transformers.architecture import context_length, examine


def model(**config):
    return SimpleNamespace(config=LlamaConfig(**config))


@pytest.mark.parametrize(
    ("limit", "rope", "context"),
    [
        (128, {"rope_type": "default"}, 128),
        (128, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        (512, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        (128, {"rope_type": "linear", "factor": 2.0}, 256),
        (128, {"rope_type": "dynamic", "factor": 2.0}, 256),
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
        examine(config, "some/model", False, None)
