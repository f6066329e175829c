from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from fusion.distill.folders import merge_folders
from tests.support.random_models import CONFIGS


def fine_tuned(model, seed):
    torch.manual_seed(seed)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    return changed


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_merged_model_loads_whole_and_equal_tasks_give_their_own_answers(tmp_path, kind, tied):
    config = copy.deepcopy(CONFIGS[kind])
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config)
    task = fine_tuned(base, 1)
    for name, model in (("base", base), ("task", task)):
        model.save_pretrained(tmp_path / name)
    merge_folders(tmp_path / "base", [tmp_path / "task"] * 2, tmp_path / "out", shard_bytes=30_000)
    merged, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading[kind_of] for kind_of in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.arange(1, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, task.eval()(ids).logits, atol=1e-4, rtol=0)
        assert (merged(ids).logits - base.eval()(ids).logits).abs().max() > 1e-2
