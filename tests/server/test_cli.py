"""The commands: exit codes, what is printed where, and a server process from start to end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from alignment.errors import ConfigError
from server import __version__
from server.loading import build
from server.settings import read_settings
from tests.support.model_folders import REPOSITORY, run, save_tokenizer


def test_version_and_help():
    assert run("--version") == (0, f"tutti {__version__}\n", "")
    for command in ("serve", "check", "align", "chat", "eval"):
        assert command in run("--help")[1]
        assert "--help" in run(command, "--help")[1]


def test_what_needs_no_model_starts_without_torch():
    code = "import sys, server.cli, server.commands.chat, server.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


@pytest.mark.parametrize("command", ["check", "serve", "eval"])
def test_every_command_lists_the_mistakes_of_a_configuration(tmp_path, command):
    (tmp_path / "c.yaml").write_text("models: {ada: {source: x, engine: y}}\nserver: {port: no}\n")
    code, out, err = run(command, tmp_path / "c.yaml")
    assert (code, out) == (2, "")
    assert [line.split(": ")[1] for line in err.splitlines()] == ["models.ada.engine", "server.port"]


def test_a_configuration_that_is_not_there(tmp_path):
    assert run("check", tmp_path / "c.yaml") == (
        2,
        "",
        f"{tmp_path / 'c.yaml'}: cannot be read: No such file or directory.\n",
    )


# check


def test_check_prints_the_plan(site):
    code, out, err = run("check", site / "tutti.yaml")
    assert (code, err) == (0, "")
    models = [line.split()[:5] for line in out.splitlines() if " transformers " in line]
    assert models == [
        ["ada", "llama", "transformers", "cpu", "float32"],
        ["ben", "gpt_neox", "transformers", "cpu", "float32"],
    ]
    members = [line.split() for line in out[out.index("Ensemble both") :].splitlines() if "%" in line]
    assert members == [["ada", "pivot", "100.0%", "0.750"], ["ben", "prefix", "100.0%", "0.250"]]


def test_check_shows_what_runs_outside_the_server(site):
    environment = {"TUTTI_MODELS__ADA__HOST": "process", "TUTTI_MODELS__BEN__HOST": "ray"}
    code, out, err = run("check", site / "tutti.yaml", env=environment)
    assert (code, err) == (0, "")
    assert {line.strip() for line in out.splitlines() if "host" in line} == {"host process: ada", "host ray: ben"}
    assert [line.split()[3] for line in out.splitlines() if " transformers " in line] == ["cpu", "ray"]


def test_without_ray_nothing_is_hosted_there(site, monkeypatch):
    monkeypatch.setattr("server.hosting.find_spec", lambda name: None)
    code, _, err = run("check", site / "tutti.yaml", env={"TUTTI_MODELS__BEN__HOST": "ray"})
    assert code == 2
    assert err == "models.ben: host: ray needs Ray; install it with: pip install 'tutti[ray]'.\n"


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
    said = "is to run on vLLM, which is not installed; pip install 'tutti[vllm]'."
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


# serve


def test_what_is_built_is_what_was_configured(site):
    runtime = build(read_settings(site / "tutti.yaml", {}))
    both = runtime.ensembles["both"]
    assert list(runtime.ensembles) == ["both", "ada", "ben"]
    assert both.defaults.weights == {"ada": 0.75, "ben": 0.25}
    assert both.defaults.filter_top == 5
    assert both.models["ben"].member.capacity.cache_tokens == 2048
    assert both.models["ben"] is runtime.ensembles["ben"].models["ben"], "a model is loaded once"
    assert runtime.ensembles["ben"].fingerprint != both.fingerprint


def test_a_port_in_use_is_said_before_anything_is_loaded(site):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = run("serve", site / "tutti.yaml", "--port", str(port))
    assert (code, out) == (2, "")
    assert err == f"Cannot listen on 127.0.0.1:{port} (address already in use): set another --host or --port.\n"


@pytest.fixture
def process(site: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", "from server.cli import main; main()", "serve", "tutti.yaml"]
    environ = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=site, env=environ, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_from_start_to_end(process, site, number):
    """One line when ready, then answers; a signal lets the answer in progress finish and exits with 0."""
    assert process.stdout is not None
    ready = process.stdout.readline()
    assert ready.startswith(f"Tutti {__version__} serves both, ada, ben at http://127.0.0.1:")
    url = ready.split()[-1].removesuffix("/v1")
    assert httpx.get(f"{url}/health").status_code == 200
    asked = ("eval", "--url", f"{url}/v1", "--tasks", site / "tasks.jsonl", "--limit", "1", "--max-tokens", "2")
    code, out, _ = run(*asked, "--models", "ben", "--models", "both")
    assert (code, [name in out for name in ("both", "ada", "ben")]) == (0, [True, False, True])
    body = {"model": "both", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 200, "stream": True}
    body |= {"ignore_eos": True, "temperature": 0}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        next(lines)
        process.send_signal(number)
        rest = list(lines)
    assert rest[-2] == "data: [DONE]"
    assert any('"finish_reason":"length"' in line for line in rest)
    assert process.wait(timeout=20) == 0
    assert process.stdout.read() == ""


# eval


def test_eval_loads_a_configuration_and_asks_every_served_name(site, tmp_path):
    code, out, _ = run(
        "eval", site / "tutti.yaml", "--max-tokens", "4", "--json", tmp_path / "r.json", "--limit", "2"
    )
    assert code == 0
    assert all(name in out for name in ("both", "ada", "ben", "sums"))
    answers = json.loads((tmp_path / "r.json").read_text())["answers"]
    assert [(a["model"], a["question"]["id"]) for a in answers] == [
        (m, q) for m in ("both", "ada", "ben") for q in "01"
    ]
    assert all(a["finish_reason"] for a in answers)


def test_eval_asks_a_model_without_a_chat_template_in_plain_text(broken):
    (broken / "ben" / "chat_template.jinja").unlink()
    options = ("eval", broken / "tutti.yaml", "--models", "ben", "--max-tokens", "4", "--limit", "1")
    code, out, err = run(*options)
    assert (code, out) == (1, "")
    said = "'ben' cannot be asked in a chat, for want of a chat template; give --completions to ask in plain text."
    assert err.splitlines()[-1] == said
    code, out, _ = run(*options, "--completions", "--template", "Q: {prompt} A:", "--stop", "Q:")
    assert (code, "sums" in out) == (0, True)


@pytest.mark.parametrize("options", [("--template", "{prompt}"), ("--completions", "--template", "Q:")])
def test_a_template_is_for_completions_and_holds_the_question(site, options):
    code, _, err = run("eval", site / "tutti.yaml", *options)
    assert (code, err.startswith("--template is for --completions, and needs {prompt}")) == (2, True)


def test_eval_wants_one_thing_to_evaluate_and_something_to_ask(site, broken):
    assert run("eval")[0] == 2
    assert run("eval", site / "tutti.yaml", "--url", "http://x")[0] == 2
    code, _, err = run("eval", "--url", "http://127.0.0.1:9")
    assert (code, err.startswith("Nothing to ask")) == (2, True)
    code, _, err = run("eval", "--url", "http://127.0.0.1:9", "--tasks", site / "tasks.jsonl")
    assert (code, err.startswith("http://127.0.0.1:9 cannot be evaluated")) == (1, True)
