from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPT2Model,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
)

from alignment.errors import ConfigError
from alignment.learning.embeddings import _files_of, find_table

SMALL = {
    "vocab_size": 70,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NEOX = {key: value for key, value in SMALL.items() if key not in ("num_key_value_heads", "head_dim")}
GPT2 = GPT2Config(vocab_size=70, n_embd=32, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2)
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "llama, tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SMALL),
    "mistral": MistralConfig(**SMALL),
    "gemma": GemmaConfig(**SMALL),
    "gpt-neox": GPTNeoXConfig(**NEOX),
    "gpt-neox, tied": GPTNeoXConfig(**NEOX, tie_word_embeddings=True),
    "gpt2": GPT2,
    "opt, narrow embeddings": OPTConfig(
        vocab_size=70,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        word_embed_proj_dim=24,
        pad_token_id=None,
        bos_token_id=1,
        eos_token_id=2,
    ),
}


def write(folder: Path, config: PretrainedConfig, **settings: object) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    model.save_pretrained(folder, **settings)
    return model


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    write(folder, CONFIGS["llama"])
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_the_tables_are_those_of_the_loaded_model(name, tmp_path):
    model = write(tmp_path, CONFIGS[name])
    for which, layer in (("input", model.get_input_embeddings()), ("output", model.get_output_embeddings())):
        table = find_table(str(tmp_path), which)
        read = table.read()
        assert read.dtype == np.float32
        assert read.shape == table.shape
        np.testing.assert_array_equal(read, layer.weight.detach().numpy())


def test_the_head_is_another_table_where_it_is_not_tied(llama):
    tables = [find_table(str(llama), which) for which in ("input", "output")]
    assert tables[0].fingerprint() != tables[1].fingerprint()


def test_shards_are_found_through_their_index(llama, tmp_path):
    model = write(tmp_path, CONFIGS["llama"], max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    for which, layer in (("input", model.get_input_embeddings()), ("output", model.get_output_embeddings())):
        table = find_table(str(tmp_path), which)
        np.testing.assert_array_equal(table.read(), layer.weight.detach().numpy())
        assert table.fingerprint() == find_table(str(llama), which).fingerprint()


def test_half_precision_is_read_as_it_is(llama, tmp_path):
    model = write(tmp_path, CONFIGS["llama"])
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    table = find_table(str(tmp_path), "input")
    np.testing.assert_array_equal(table.read(), model.get_input_embeddings().weight.detach().float().numpy())
    assert table.fingerprint() != find_table(str(llama), "input").fingerprint()


def test_a_table_is_read_in_pieces(llama, monkeypatch):
    table = find_table(str(llama), "input")
    whole, fingerprint = table.read(), table.fingerprint()
    monkeypatch.setattr("alignment.learning.embeddings._CHUNK", 100)
    np.testing.assert_array_equal(table.read(), whole)
    assert table.fingerprint() == fingerprint


def test_a_changed_number_changes_the_fingerprint(llama, tmp_path):
    write(tmp_path, CONFIGS["llama"])
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][3, 3] += 1
    save_file(tensors, file)
    assert find_table(str(tmp_path), "input").fingerprint() != find_table(str(llama), "input").fingerprint()
    assert find_table(str(tmp_path), "output").fingerprint() == find_table(str(llama), "output").fingerprint()


def test_checkpoints_without_the_prefix_of_the_model_are_read(tmp_path):
    torch.manual_seed(0)
    model = GPT2Model(GPT2)
    model.save_pretrained(tmp_path)
    table = find_table(str(tmp_path), "output")
    assert table.name == "wte.weight"
    np.testing.assert_array_equal(table.read(), model.wte.weight.detach().numpy())


def shape_of_another(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 71}))


def without_embeddings(folder: Path) -> None:
    save_file({"model.norm.weight": torch.ones(32)}, folder / "model.safetensors")


def as_integers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.to(torch.int8) for name, tensor in tensors.items()}, folder / "model.safetensors")


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def without_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def broken_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "architecture of .* cannot be told"),
        (lambda folder: (folder / "config.json").write_text("{}"), "architecture of .* cannot be told"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no safetensors weights"),
        (shape_of_another, r"F32 of shape \(70, 32\).* shape \(71, 32\)"),
        (without_embeddings, "no tensor model.embed_tokens.weight"),
        (as_integers, "are I8 of shape"),
        (cut_off, "damaged"),
        (without_a_shard, "lacks its file model-00001-of-00002.safetensors"),
        (broken_index, "damaged"),
    ],
)
def test_a_checkpoint_without_its_table_is_refused_in_a_sentence(spoil, message, tmp_path):
    write(tmp_path, CONFIGS["llama"])
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        find_table(str(tmp_path), "input").read()
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_network_nobody_is_told_to_convert_a_checkpoint(monkeypatch):
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Connection refused")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr("alignment.learning.embeddings._path", lambda *_: None)
    with pytest.raises(ConfigError, match=r"could not be fetched from the model hub \(Connection refused\)"):
        _files_of("someone/model", None)
