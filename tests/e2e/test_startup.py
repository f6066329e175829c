"""A server that cannot be started says why in one sentence, with exit code 2, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

from tests.support.demo import MODELS, REPOSITORY
from tests.support.forks import Fork
from tests.support.serving import START


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str
    group: int


Serve = Callable[..., Outcome]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    def start(*arguments: str | Path) -> Outcome:
        stdout, stderr = tmp_path / "stdout", tmp_path / "stderr"
        with Fork("-m", "server", "serve", *arguments, output=stdout, errors=stderr) as process:
            code = process.wait(timeout=280)
        return Outcome(code, stdout.read_text(), stderr.read_text(), process.pid)

    return start


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Two of the demo's models, in copies to be damaged, and an ensemble of them."""
    for name in ("abacus", "lingvo"):
        shutil.copytree(MODELS / name, tmp_path / name)
    path = tmp_path / "tutti.yaml"
    path.write_text(
        "models:\n"
        "  abacus: {source: abacus, device: cpu}\n"
        "  lingvo: {source: lingvo}\n"
        "ensembles:\n"
        "  both: {members: [abacus, lingvo], pivot: lingvo}\n"
    )
    return path


def no_checkpoint(config: Path) -> str:
    shutil.rmtree(config.parent / "abacus")
    config.write_text(config.read_text().replace("source: abacus", "source: ./abacus"))
    return "models.abacus: The checkpoint folder ./abacus does not exist: correct source."


def no_tokenizer(config: Path) -> str:
    (config.parent / "lingvo" / "tokenizer.json").unlink()
    (config.parent / "lingvo" / "tokenizer_config.json").unlink()
    return f"models.lingvo: The folder {config.parent / 'lingvo'} has no tokenizer"


def only_a_pickle(config: Path) -> str:
    folder = config.parent / "lingvo"
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(2)}, folder / "pytorch_model.bin")
    return f"models.lingvo: {folder} has only pytorch_model.bin, a pickle, which can run code and is never loaded"


def no_such_device(config: Path) -> str:
    config.write_text(config.read_text().replace("device: cpu", "device: 'cuda:77'"))
    return "models.abacus: Device 'cuda:77' does not exist on this machine"


def pivot_is_no_member(config: Path) -> str:
    config.write_text(config.read_text().replace("pivot: lingvo", "pivot: almanac"))
    return "almanac"


def weights_are_damaged(config: Path) -> str:
    weights = config.parent / "abacus" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return f"models.abacus: {weights} is damaged ("


def unreadable_key_file(config: Path) -> str:
    (config.parent / "keys").mkdir()
    config.write_text(config.read_text() + "server: {api_keys_file: keys}\n")
    return f"server.api_keys_file: {config.parent / 'keys'}: cannot be read: Is a directory."


def unwritable_cache(config: Path) -> str:
    (config.parent / "cache").write_text("a file, not a folder")
    text = config.read_text().replace("pivot: lingvo}", "pivot: lingvo, alignment: mined}")
    config.write_text(text + "server: {cache_dir: cache}\n")
    folder = config.parent / "cache" / "maps"
    return f"Learned maps cannot be kept in {folder} (Not a directory): make it writable for this user"


DAMAGES = [no_checkpoint, no_tokenizer, only_a_pickle, no_such_device, pivot_is_no_member]
DAMAGES += [unreadable_key_file, unwritable_cache]


def check(outcome: Outcome, sentence: str) -> None:
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr.count("\n") == 1, outcome.stderr
    assert sentence in outcome.stderr
    assert outcome.stderr.endswith(".\n")
    with pytest.raises(ProcessLookupError):
        os.killpg(outcome.group, 0)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_configuration_that_cannot_be_served(serve: Serve, config: Path, damage: Callable[[Path], str]) -> None:
    sentence = damage(config)
    check(serve(config, "--port", "0"), sentence)


def test_a_port_in_use(serve: Serve, config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        check(serve(config, "--port", str(port)), f"Cannot listen on 127.0.0.1:{port} (address already in use)")


def test_damaged_weights_are_found_while_loading(serve: Serve, config: Path) -> None:
    """The log has told by then which model is being loaded; the sentence is its last line."""
    sentence = weights_are_damaged(config)
    outcome = serve(config, "--port", "0")
    assert outcome.code == 2
    assert "Traceback" not in outcome.stderr
    assert outcome.stderr.splitlines()[-1].startswith(sentence)


def test_from_the_command_line(config: Path) -> None:
    """The whole way, in a process that nothing was prepared for."""
    sentence = no_checkpoint(config)
    environ = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        [*START, str(config), "--port", "0"], env=environ, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"{sentence}\n")


def test_when_a_worker_cannot_start_the_others_are_shut_down(serve: Serve, tmp_path: Path) -> None:
    mark = {"STARTED_BY": str(tmp_path)}
    environments = {"abacus": mark, "lingvo": mark | {"PYTHONIOENCODING": "nope"}}
    models = {
        name: {"source": str(MODELS / name), "host": "process", "worker": {"environment": environment}}
        for name, environment in environments.items()
    }
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"models": models}))
    outcome = serve(config, "--port", "0")
    assert outcome.code == 2
    assert outcome.stderr.splitlines()[-1] == (
        "models.lingvo: its worker process ended with exit code 1 before it was ready; see what it printed."
    )
    assert "Traceback" not in outcome.stderr
    environs = [process.info["environ"] or {} for process in psutil.process_iter(["environ"])]
    assert not [environ for environ in environs if environ.items() >= mark.items()]
