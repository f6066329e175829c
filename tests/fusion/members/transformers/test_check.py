"""The start-up check tells rounding, which grows with a model's logits, from results that are wrong."""

import pytest
import torch
from transformers import LlamaConfig

from fusion.members.transformers.engine import TransformersEngine
from fusion.members.transformers.forward import attention
from tests.support.random_models import SHAPE, build

# Logits with a standard deviation of some 3, as those of trained models.
SHARP = LlamaConfig(**SHAPE | {"initializer_range": 0.4, "num_hidden_layers": 4})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_packed_for_all_its_rounding(dtype):
    engine = TransformersEngine(build(SHARP).to(dtype), cache_tokens=512)
    assert engine.path == "packed"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_mask_that_hides_most_of_the_text_is_found_in_any_precision(dtype, monkeypatch):
    mask = attention.Run.mask
    monkeypatch.setattr(attention.Run, "mask", lambda run, window, *kind: mask(run, min(window or 99, 4), *kind))
    engine = TransformersEngine(build(SHARP).to(dtype), cache_tokens=512)
    assert engine.path != "packed"
