"""Checkpoints by hub id: downloaded once, then read from the local cache; what is missing is said so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.support.demo import MODELS, REPOSITORY, questions, user
from tests.support.model_hub import Hub, hub
from tests.support.serving import Server, serving

REPO = "somebody/abacus"
REVISION = "v2"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def online() -> Iterator[Hub]:
    """A hub whose `main` is another model than its `v2`."""
    with hub({REPO: {"main": MODELS / "lingvo", REVISION: MODELS / "abacus"}}) as stored:
        yield stored


def configuration(folder: Path, source: str, revision: str) -> Path:
    path = folder / "tutti.yaml"
    path.write_text(f"models:\n  ada: {{source: {source}, revision: {revision}, dtype: float32}}\n")
    return path


def environment(home: Path, **more: str) -> dict[str, str]:
    return {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"} | more


def answer(server: Server, model: str = "ada") -> str:
    messages = user(questions(4, "arithmetic")[1])
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        done = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=40)
    assert done.choices[0].message.content
    return done.choices[0].message.content


@pytest.fixture(scope="module")
def expected(server: Server) -> str:
    """What the model answers when it is served from its folder."""
    return answer(server, "abacus")


def test_a_model_is_downloaded_at_the_revision_asked_for(tmp_path: Path, online: Hub, expected: str) -> None:
    config = configuration(tmp_path, REPO, REVISION)
    log = tmp_path / "log"
    with serving(config, log, **environment(tmp_path, HF_ENDPOINT=online.url)) as server:
        assert answer(server) == expected
    downloads = [request for request in online.requests if request.startswith("GET") and ".safetensors" in request]
    assert len(downloads) == 1
    # Once here, neither the hub nor the network is needed.
    online.requests.clear()
    with serving(config, log, **environment(tmp_path, HF_HUB_OFFLINE="1", HF_ENDPOINT=online.url)) as server:
        assert answer(server) == expected
    assert online.requests == []


def test_a_cache_that_came_with_the_machine_is_served_offline(tmp_path: Path, expected: str) -> None:
    stored = tmp_path / "hub" / f"models--{REPO.replace('/', '--')}"
    shutil.copytree(MODELS / "abacus", stored / "snapshots" / COMMIT)
    (stored / "refs").mkdir()
    (stored / "refs" / REVISION).write_text(COMMIT)
    config = configuration(tmp_path, REPO, REVISION)
    with serving(config, tmp_path / "log", **environment(tmp_path, HF_HUB_OFFLINE="1")) as server:
        assert answer(server) == expected


def check(config: Path, environ: dict[str, str]) -> tuple[int, str]:
    """Exit code and errors of `tutti check`."""
    done = subprocess.run(
        [sys.executable, "-m", "server", "check", str(config)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stderr


def test_what_the_hub_does_not_have(tmp_path: Path, online: Hub) -> None:
    config = configuration(tmp_path, REPO, "v3")
    config.write_text(config.read_text() + "  ben: {source: nobody/nothing}\n")
    code, errors = check(config, environment(tmp_path, HF_ENDPOINT=online.url))
    assert code == 2
    assert errors.splitlines() == [
        f"models.ada: {REPO} has no such revision on the Hugging Face hub; check revision.",
        "models.ben: nobody/nothing is no folder here and no model of the Hugging Face hub; "
        "check the name, or set HF_TOKEN.",
    ]


def test_what_is_not_in_the_cache_without_a_network(tmp_path: Path) -> None:
    config = configuration(tmp_path, "nobody/nothing", "main")
    sentence = "nobody/nothing is no folder here and not in reach on the Hugging Face hub; check name and network."
    assert check(config, environment(tmp_path, HF_HUB_OFFLINE="1")) == (2, f"models.ada: {sentence}\n")


def test_a_cache_that_cannot_be_written(tmp_path: Path, online: Hub) -> None:
    (tmp_path / "volume").write_text("a file, not a folder")
    cache = tmp_path / "volume" / "hub"
    environ = environment(tmp_path, HF_HUB_CACHE=str(cache), HF_ENDPOINT=online.url)
    sentence = (
        f"{REPO} cannot be kept in {cache} (Not a directory): make the cache of checkpoints writable for this "
        "user, or set HF_HOME to another folder."
    )
    assert check(configuration(tmp_path, REPO, REVISION), environ) == (2, f"models.ada: {sentence}\n")
