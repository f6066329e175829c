from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from alignment.errors import ConfigError
from fusion.core import Advance, AdvanceFailed
from fusion.members.check import run
from fusion.members.transformers.engine import TransformersEngine
from fusion.members.transformers.lora import _Adapted
from tests.support.random_models import RANKS_AND_ALPHAS
from tests.support.reference import shared


@pytest.fixture(scope="module")
def golden():
    folder = shared("golden", "adapters")
    views = json.loads((folder / "views.json").read_text())
    names = [None if row == "__base__" else row for row in views["rows"]]
    return folder, names, np.load(folder / "views.npz")


@pytest.fixture(scope="module")
def engine(golden):
    folder, names, _ = golden
    adapters = {name: str(folder / name) for name in names if name}
    return TransformersEngine.load(str(folder / "base"), candidates=10_000, adapters=adapters)


def dense(answer):
    row = np.empty(answer.ids.shape[1], np.float32)
    row[answer.ids[-1]] = answer.logprobs[-1]
    return row


def test_rows_of_one_pass_run_with_their_own_adapters(golden, engine):
    _, names, arrays = golden
    answers = run(
        engine,
        [
            Advance(i, 0, row.tolist(), adapter=name)
            for i, (row, name) in enumerate(zip(arrays["input_ids"], names, strict=True))
        ],
    )
    for i, expected in enumerate(arrays["logprobs"]):
        np.testing.assert_allclose(dense(answers[i]), expected, rtol=0, atol=1e-5)
    engine.close(range(4))


def test_one_prompt_under_each_adapter_token_by_token_and_rolled_back(golden, engine):
    _, names, arrays = golden
    ids = arrays["same_input_ids"].tolist()
    run(engine, [Advance(i, 0, [*ids[:3], 5, 6], adapter=name) for i, name in enumerate(names)])
    for at in range(3, len(ids)):
        answers = run(engine, [Advance(i, at, [ids[at]]) for i in range(len(names))])
    for i, expected in enumerate(arrays["same_logprobs"]):
        np.testing.assert_allclose(dense(answers[i]), expected, rtol=0, atol=1e-5)
    engine.close(range(4))


def test_a_sequence_that_opens_again_may_run_with_another_adapter(golden, engine):
    _, names, arrays = golden
    ids = arrays["same_input_ids"].tolist()
    for i, name in enumerate(names):
        answers = run(engine, [Advance(9, 0, ids, adapter=name)])
        np.testing.assert_allclose(dense(answers[9]), arrays["same_logprobs"][i], rtol=0, atol=1e-5)
    engine.close([9])


def test_an_adapter_of_the_output_layer_reaches_its_own_rows_alone(golden, tmp_path):
    """The output layer sees the last tokens of the rows, the other layers all of them."""
    folder, _, _ = golden
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    wrapped = get_peft_model(base, config).eval()
    wrapped.save_pretrained(tmp_path / "head", save_embedding_layers=False)
    engine = TransformersEngine.load(
        str(folder / "base"), candidates=10_000, adapters={"head": str(tmp_path / "head")}
    )
    rng = np.random.default_rng(3)
    prompts = [rng.integers(3, engine.known_ids, length).tolist() for length in (7, 1, 12, 5)]
    names = ["head", None, "head", None]
    rows = list(zip(prompts, names, strict=True))
    answers = run(engine, [Advance(i, 0, ids, adapter=name) for i, (ids, name) in enumerate(rows)])
    for i, (ids, name) in enumerate(rows):
        with torch.inference_mode(), nullcontext() if name else wrapped.disable_adapter():
            expected = wrapped(torch.tensor([ids])).logits[0, -1].log_softmax(-1).numpy()
        np.testing.assert_allclose(dense(answers[i]), expected, rtol=0, atol=1e-5, err_msg=str(i))
    engine.close(range(4))


def test_layers_may_have_ranks_and_alphas_of_their_own(golden, tmp_path):
    folder, _, _ = golden
    torch.manual_seed(1)
    config = LoraConfig(**RANKS_AND_ALPHAS)
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), config).eval()
    wrapped.save_pretrained(tmp_path / "own")
    engine = TransformersEngine.load(
        str(folder / "base"), candidates=10_000, adapters={"own": str(tmp_path / "own")}
    )
    ids = np.random.default_rng(3).integers(3, engine.known_ids, 9).tolist()
    answers = run(engine, [Advance(0, 0, ids, adapter="own")])
    with torch.inference_mode():
        expected = wrapped(torch.tensor([ids])).logits[0, -1].log_softmax(-1).numpy()
    np.testing.assert_allclose(dense(answers[0]), expected, rtol=0, atol=1e-5)


def test_an_unknown_adapter_fails_the_advance_alone(engine):
    engine.add([Advance(1, 0, [3, 4], adapter="nobody"), Advance(2, 0, [3, 4])])
    answers = {answer.sequence: answer for answer in engine.step()}
    assert isinstance(answers[1], AdvanceFailed)
    assert "nobody" in answers[1].reason
    assert answers[2].logprobs.size
    engine.close([1, 2])


def test_what_two_prompts_begin_with_is_read_once_where_they_share_their_adapter(golden, engine, monkeypatch):
    _, names, _ = golden
    rng = np.random.default_rng(0)
    common = rng.integers(3, engine.known_ids, 40).tolist()
    prompts = [[*common, 7, 8], [*common, 9], [*common, 7, 10, 11], common[:20]]
    alone = [dense(run(engine, [Advance(1, 0, prompt, adapter=names[0])])[1]) for prompt in prompts]
    engine.close([1])
    seen = []
    original = engine._forward.run

    def counting(parts):
        seen.append(sum(len(part.ids) for part in parts))
        return original(parts)

    monkeypatch.setattr(engine._forward, "run", counting)
    together = run(engine, [Advance(i, 0, prompt, adapter=names[0]) for i, prompt in enumerate(prompts)])
    for i, expected in enumerate(alone):
        np.testing.assert_allclose(dense(together[i]), expected, rtol=0, atol=1e-5)
    assert sum(seen) <= 42 + 1 + 2 + 20
    engine.close(range(4))
    seen.clear()
    run(engine, [Advance(i, 0, prompts[i], adapter=name) for i, name in enumerate(names[:2])])
    assert sum(seen) == len(prompts[0]) + len(prompts[1])
    engine.close(range(4))


def test_one_that_waits_for_a_beginning_reads_it_itself_when_the_other_is_closed(golden, engine):
    common = np.random.default_rng(1).integers(3, engine.known_ids, 40).tolist()
    alone = dense(run(engine, [Advance(1, 0, [*common, 9])])[1])
    engine.close([1])
    engine.add([Advance(1, 0, [*common, 7, 8]), Advance(2, 0, [*common, 9])])
    engine.close([1])
    answers = run(engine, [])
    np.testing.assert_allclose(dense(answers[2]), alone, rtol=0, atol=1e-5)
    engine.close([2])


def changed(folder, tmp_path, **config):
    copy = tmp_path / "adapter"
    shutil.copytree(folder / "all", copy)
    path = copy / "adapter_config.json"
    path.chmod(0o644)
    copy.chmod(0o755)
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return copy


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"trainable_token_indices": [1]}, "trained embeddings"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "biases"),
        ({"peft_type": "LOHA"}, "only LORA"),
        ({"init_lora_weights": "pissa"}, "weights of its own"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"alpha_pattern": {"q_proj(": 4}}, "alpha_pattern"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern"),
        ({"alpha_pattern": {"q_proj": "4"}}, "lora_alpha"),
    ],
)
def test_what_is_not_built_is_refused(golden, tmp_path, config, sentence):
    copy = changed(golden[0], tmp_path, **config)
    with pytest.raises(ConfigError, match=sentence):
        TransformersEngine.load(str(golden[0] / "base"), adapters={"a": str(copy)})


def test_a_pickle_is_never_loaded(golden, tmp_path):
    copy = changed(golden[0], tmp_path)
    (copy / "adapter_model.safetensors").rename(copy / "adapter_model.bin")
    with pytest.raises(ConfigError, match="pickle"):
        TransformersEngine.load(str(golden[0] / "base"), adapters={"a": str(copy)})


def test_an_adapter_of_another_base_is_refused_by_names_and_by_shapes(golden, tmp_path):
    copy = changed(golden[0], tmp_path)
    file = copy / "adapter_model.safetensors"
    tensors = load_file(file)
    file.chmod(0o644)
    save_file({name.replace("layers.1", "layers.7"): tensor for name, tensor in tensors.items()}, file)
    with pytest.raises(ConfigError, match=r"no layer .*layers\.7"):
        TransformersEngine.load(str(golden[0] / "base"), adapters={"a": str(copy)})
    save_file({n: np.ascontiguousarray(t[:, :-1]) if "lora_A" in n else t for n, t in tensors.items()}, file)
    with pytest.raises(ConfigError, match="adapter of another model: it takes"):
        TransformersEngine.load(str(golden[0] / "base"), adapters={"a": str(copy)})


def test_a_layer_that_sees_all_rows_in_one_line_gives_each_token_its_own_adapter():
    """As a mixture of experts does on the padded path."""
    torch.manual_seed(0)
    down, up = torch.randn(3, 4), torch.randn(5, 3)
    scales = torch.tensor([[[0.0, 0.0, 0.0]], [[1.0, 2.0, 0.5]]])  # [B, 1, R]
    adapters = SimpleNamespace(scales=lambda columns, is_head: scales)
    layer = _Adapted(lambda x: torch.zeros(*x.shape[:-1], 5), down, up, (), adapters, is_head=False)
    x = torch.randn(2, 6, 4)
    assert torch.equal(layer(x.view(12, 4)).view(2, 6, 5), layer(x))
