"""Whatever keeps a checkpoint from being served is said in one sentence."""

import json
import shutil

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, T5Config, T5ForConditionalGeneration

from alignment.errors import ConfigError
from fusion.core import Advance
from fusion.members.checkpoint import (
    estimate,
    listed_sampling,
    listed_stops,
    model_without_weights,
    read_config,
    weight_files,
)
from fusion.members.devices import parse_device, parse_dtype
from fusion.members.transformers.engine import TransformersEngine
from tests.support import architectures as zoo
from tests.support.random_models import build, error_of, plain_logprobs, run


@pytest.fixture
def folder(tmp_path):
    build("llama").save_pretrained(tmp_path)
    return tmp_path


def refusal(source, **options):
    with pytest.raises(ConfigError) as caught:
        TransformersEngine.load(str(source), cache_tokens=64, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_a_saved_model_is_served_as_it_was(folder, capfd):
    engine = TransformersEngine.load(str(folder), cache_tokens=64, max_context=32, prefill_chunk=8)
    answer = run(engine, Advance(1, 0, [4, 5, 6]))[1]
    assert error_of(answer, plain_logprobs(build("llama"), [4, 5, 6])[-1:]) < 1e-4
    engine.shutdown()
    assert capfd.readouterr() == ("", "")


def test_a_folder_that_does_not_exist(tmp_path):
    assert (
        refusal(tmp_path / "nothing")
        == f"The checkpoint folder {tmp_path}/nothing does not exist: correct source."
    )
    assert refusal("models/of/mine") == "The checkpoint folder models/of/mine does not exist: correct source."
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file").endswith("is a file; give the folder of the checkpoint.")


def test_a_hub_id_out_of_reach(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert refusal("nobody/nothing") == (
        "nobody/nothing is no folder here and not in reach on the Hugging Face hub; check name and network."
    )


def test_a_folder_without_configuration(folder):
    (folder / "config.json").unlink()
    assert refusal(folder) == f"{folder} has no config.json; give the folder that save_pretrained wrote."


def test_a_broken_configuration(folder):
    (folder / "config.json").write_text('{"model_type": ')
    assert "config.json is not valid JSON" in refusal(folder)
    (folder / "config.json").write_text("[]")
    assert refusal(folder) == f"{folder}: config.json is not a JSON object: copy it again."
    (folder / "config.json").write_text('{"model_type": "perpetuum"}')
    assert "does not know this architecture" in refusal(folder)


def test_weights_as_a_pickle_are_never_loaded(folder):
    (folder / "model.safetensors").unlink()
    assert refusal(folder) == f"{folder} has no weights; convert the checkpoint to safetensors."
    torch.save({}, folder / "pytorch_model.bin")
    assert refusal(folder) == (
        f"{folder} has only pytorch_model.bin, a pickle, which can run code and is never loaded; "
        "convert the checkpoint to safetensors."
    )


def test_damaged_weights(folder):
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    assert "model.safetensors is damaged" in refusal(folder)


def test_a_truncated_file_is_found_without_loading_it(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"model\.safetensors is damaged"):
        weight_files(str(folder))


def sharded(folder) -> list[str]:
    """The folder's weights in several files; returns their names."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    names = sorted(file.name for file in folder.glob("*.safetensors"))
    assert len(names) > 2
    assert list(weight_files(str(folder))) == names
    return names


def test_a_shard_that_is_missing_is_found_without_loading_the_others(folder):
    names = sharded(folder)
    shutil.copy(folder / names[0], folder / "stray.safetensors")
    assert list(weight_files(str(folder))) == names
    (folder / names[1]).unlink()
    with pytest.raises(ConfigError) as refused:
        weight_files(str(folder))
    assert str(refused.value) == f"{folder} lacks {names[1]}, which its index names: copy it again."


@pytest.mark.parametrize("named", ["pytorch_model.bin", "../outside.safetensors", "/tmp/outside.safetensors", 7])
def test_an_index_names_safetensors_beside_it_and_nothing_else(folder, named):
    names = sharded(folder)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    moved = {"pytorch_model.bin": folder / "pytorch_model.bin"}.get(named, folder.parent / "outside.safetensors")
    shutil.copy(folder / names[0], moved)
    content["weight_map"] = {n: named if f == names[0] else f for n, f in content["weight_map"].items()}
    index.write_text(json.dumps(content))
    assert "index" in refusal(folder)


def test_an_adapter_beside_the_weights_is_not_applied_unasked(folder):
    """They may be the merged ones."""
    (folder / "adapter_config.json").write_text("{}")
    assert "holds a LoRA adapter beside its weights" in refusal(folder)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    assert list(weight_files(str(folder))) == ["adapter_model.safetensors"], "of an adapter alone"


def test_missing_weights_are_not_made_up(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert refusal(folder) == (
        f"{folder} lacks 1 of the model's weights, such as model.layers.1.mlp.up_proj.weight: copy it again."
    )


def test_code_of_its_own_is_not_run_unasked(folder):
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "own"
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit")
    assert "set trust_remote_code: true if you trust its author" in refusal(folder)


def test_a_package_that_the_checkpoints_own_code_lacks_is_named(folder):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("import a_package_that_is_not_here")
    read = read_config(str(folder), trust_remote_code=True)
    with pytest.raises(ConfigError, match="a_package_that_is_not_here"):
        model_without_weights(read, str(folder), trust_remote_code=True)


@pytest.mark.parametrize(
    ("reference", "revision", "taken"),
    [
        ("owner/name--own.Model", "abc", "abc"),
        ("own.Model", "abc", "abc"),
        ("owner/other--own.Model", "abc", None),
        ("own.Model", None, None),
    ],
)
def test_code_is_that_of_the_revision(monkeypatch, reference, revision, taken):
    """`from_config` would take the newest."""
    asked = []
    monkeypatch.setattr(AutoModelForCausalLM, "from_config", lambda config, **options: asked.append(options))
    config = LlamaConfig(auto_map={"AutoModelForCausalLM": reference})
    model_without_weights(config, "owner/name", revision=revision, trust_remote_code=True)
    assert asked[0].get("code_revision") == taken
    model_without_weights(LlamaConfig(), "owner/name", revision=revision, trust_remote_code=True)
    assert "code_revision" not in asked[1]


def test_weights_in_two_formats_are_counted_once(folder):
    plain = weight_files(str(folder))
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    assert list(weight_files(str(folder)).values()) == list(plain.values())


def test_a_model_that_is_not_causal(tmp_path):
    config = T5Config(vocab_size=100, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    assert "is not a causal language model" in refusal(tmp_path)


def test_devices(folder):
    assert parse_device("cpu") == torch.device("cpu")
    assert refusal(folder, device="toaster") == "'toaster' is not a device; use cpu, cuda, cuda:N or mps."
    if not torch.cuda.is_available():
        assert refusal(folder, device="cuda:3") == (
            "Device 'cuda:3' does not exist on this machine: it has no CUDA device."
        )
    assert "does not exist on this machine" in refusal(folder, device="cuda:99")
    assert "does not exist on this machine" in refusal(folder, device="meta")


def test_dtypes(folder):
    assert parse_dtype("bfloat16") is torch.bfloat16
    assert refusal(folder, dtype="int3") == (
        "'int3' is not a dtype for weights; use one of float32, bfloat16, float16."
    )


def test_the_ends_that_both_configurations_list_are_read(folder):
    assert listed_stops(str(folder)) == ((2,), (2,))
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert listed_stops(str(folder)) == ((7, 8), (2,))
    (folder / "generation_config.json").unlink()
    assert listed_stops(str(folder)) == ((), (2,))
    (folder / "config.json").write_text('{"model_type": "gemma3", "text_config": {"eos_token_id": 5}}')
    assert listed_stops(str(folder)) == ((), (5,))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert listed_stops(str(folder)) == ((), ())


def test_the_estimate_is_what_the_engine_takes(folder):
    weights, cache = estimate(str(folder), "float32", 64)
    engine = TransformersEngine.load(str(folder), cache_tokens=64)
    assert cache == engine._cache.nbytes
    assert weights == sum(weight_files(str(folder)).values())
    assert weights == pytest.approx(sum(p.nbytes for p in build("llama").parameters()), rel=0.05)
    assert estimate(str(folder), "bfloat16", 64) == (weights // 2, cache // 2)


@pytest.mark.parametrize("name", ["deepseek_v3", "gpt_bigcode", "falcon", "falcon_h1", "jamba", "mamba", "zamba2"])
def test_the_estimate_knows_what_an_architecture_caches(name, tmp_path):
    zoo.build(name).save_pretrained(tmp_path)
    engine = TransformersEngine.load(str(tmp_path), cache_tokens=64)
    assert estimate(str(tmp_path), "float32", 64)[1] == engine._cache.nbytes


def test_recommended_sampling_is_read_within_its_bounds(tmp_path):
    assert listed_sampling(str(tmp_path)) == {}
    listed = {"temperature": 0.6, "top_k": 20, "top_p": 7, "min_p": "0.1", "do_sample": True, "eos_token_id": 2}
    (tmp_path / "generation_config.json").write_text(json.dumps(listed))
    assert listed_sampling(str(tmp_path)) == {"temperature": 0.6, "top_k": 20}
