"""`tutti check`: the plan, and one sentence for each problem."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from alignment.errors import ConfigError
from server.loading import build
from server.settings import read_settings
from tests.support.model_folders import REPOSITORY, run, save_tokenizer


def test_check_prints_the_plan(site):
    code, out, err = run("check", site / "tutti.yaml")
    assert (code, err) == (0, "")
    models = [line.split()[:5] for line in out.splitlines() if " transformers " in line]
    assert models == [
        ["ada", "llama", "transformers", "cpu", "float32"],
        ["ben", "gpt_neox", "transformers", "cpu", "float32"],
    ]
    members = [line.split() for line in out[out.index("Ensemble both") :].splitlines() if "%" in line]
    assert members == [["ada", "pivot", "100.0%", "0.750"], ["ben", "spelled", "100.0%", "0.250"]]


def test_check_shows_what_runs_outside_the_server(site):
    environment = {"TUTTI_MODELS__ADA__HOST": "process", "TUTTI_MODELS__BEN__HOST": "ray"}
    code, out, err = run("check", site / "tutti.yaml", env=environment)
    assert (code, err) == (0, "")
    assert {line.strip() for line in out.splitlines() if "host" in line} == {"host process: ada", "host ray: ben"}
    assert [line.split()[3] for line in out.splitlines() if " transformers " in line] == ["cpu", "ray"]


def test_without_ray_nothing_is_hosted_there(site, monkeypatch):
    monkeypatch.setattr("fusion.assembly.members.find_spec", lambda name: None)
    code, _, err = run("check", site / "tutti.yaml", env={"TUTTI_MODELS__BEN__HOST": "ray"})
    assert code == 2
    assert err == "models.ben: host ray needs Ray; install it in Tutti's folder with: pip install '.[ray]'.\n"


def test_check_lists_every_problem_and_shows_the_rest(broken):
    (broken / "ben" / "tokenizer.json").unlink()
    config = broken / "tutti.yaml"
    config.write_text(config.read_text().replace("{source: ada,", "{source: ada, device: 'cuda:99',"))
    code, _, err = run("check", config)
    assert code == 2
    ada, ben = err.splitlines()
    assert ada.startswith("models.ada: Device 'cuda:99' does not exist")
    assert ben.startswith(f"models.ben: The folder {broken / 'ben'} has no tokenizer")


def _no_folder(site: Path) -> None:
    shutil.rmtree(site / "ben")


def _no_config(site: Path) -> None:
    (site / "ben" / "config.json").unlink()


def _only_a_pickle(site: Path) -> None:
    (site / "ben" / "model.safetensors").rename(site / "ben" / "pytorch_model.bin")


def _an_encoder(site: Path) -> None:
    config = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": 300}
    (site / "ben" / "config.json").write_text(json.dumps(config))


def _a_classifier(site: Path) -> None:
    config = {"model_type": "clip", "architectures": ["CLIPModel"]}
    (site / "ben" / "config.json").write_text(json.dumps(config))


def _a_tokenizer_too_large(site: Path) -> None:
    save_tokenizer(site / "ben", [chr(ord("a") + n) + "h" for n in range(20)])


def _no_end_token(site: Path) -> None:
    path = site / "ben" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": None}))
    (site / "ben" / "generation_config.json").unlink()
    path = site / "ben" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": None}))


DAMAGE = {
    _no_folder: "ben",
    _no_config: "has no config.json",
    _only_a_pickle: "safetensors",
    _an_encoder: "t5 model, which transformers cannot run as a causal language model",
    _a_classifier: "clip model, which transformers cannot run as a causal language model",
    _a_tokenizer_too_large: "has a tokenizer of 276 ids for a model of 260",
    _no_end_token: "names no end token",
}


@pytest.mark.parametrize(("damage", "sentence"), DAMAGE.items(), ids=[damage.__name__ for damage in DAMAGE])
def test_a_checkpoint_that_cannot_be_served_is_named(broken, damage, sentence):
    damage(broken)
    code, _, problem = run("check", broken / "tutti.yaml")
    assert code == 2
    assert problem.startswith("models.ben: ")
    assert problem.count("\n") == 1
    assert sentence in problem
    with pytest.raises(ConfigError) as caught:
        build(read_settings(broken / "tutti.yaml", {}))
    assert f"{caught.value}\n" == problem


def test_check_says_when_the_machine_is_too_small(site):
    code, _, err = run("check", site / "tutti.yaml", env={"TUTTI_MODELS__ADA__CACHE_TOKENS": str(10**12)})
    assert code == 2
    assert err.startswith("cpu has ")
    assert "lower cache_tokens" in err


def on_vllm(site: Path, **engine_args: str) -> None:
    config = (site / "tutti.yaml").read_text()
    for name, given in engine_args.items():
        config = config.replace(f"source: {name}", f"source: {name}, engine: vllm, engine_args: {given}")
    (site / "tutti.yaml").write_text(config)


def test_check_has_vllm_validate_its_arguments(broken):
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    imported = "vllm" in sys.modules
    on_vllm(broken, ada="{enforce_eager: perhaps}", ben="{gpu_utilisation: 0.5}")
    code, out, err = run("check", broken / "tutti.yaml")
    assert (code, "Ensemble both" in out) == (2, True)
    assert err.splitlines() == [
        f"models.ada: {broken / 'ada'}: vLLM cannot start it (enforce_eager: Input should be a valid boolean, "
        "unable to interpret input): correct its engine_args.",
        f"models.ben: {broken / 'ben'}: vLLM has no engine argument gpu_utilisation; see `vllm serve --help`.",
    ]
    assert ("vllm" in sys.modules) == imported  # it was asked elsewhere


def test_check_without_vllm(broken, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "vllm" else find_spec(name))
    on_vllm(broken, ada="{}", ben="{}")
    code, _, err = run("check", broken / "tutti.yaml")
    said = "is to run on vLLM, which is not installed; in Tutti's folder: pip install '.[vllm]'."
    assert (code, err) == (2, f"models.ada: {broken / 'ada'} {said}\n")


def test_check_notes_a_model_without_chat_template(broken):
    (broken / "ben" / "chat_template.jinja").unlink()
    code, out, _ = run("check", broken / "tutti.yaml")
    assert code == 0
    assert "Note: ben has no chat template" in out


def test_the_example_configuration_holds():
    """Devices and checkpoints aside, which are not here."""
    settings = read_settings(REPOSITORY / "deploy" / "example.yaml", {})
    assert settings.served == ("trio", "llama", "qwen", "mistral")
    assert settings.ensembles["trio"].filter_top is None
