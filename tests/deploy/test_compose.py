"""compose.yaml: valid for the tool and for the specification, and as careful as it says it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from server import __version__
from server.settings import read_settings
from tests.support.dockerfile import REPOSITORY, stages

COMPOSE = REPOSITORY / "compose.yaml"
SECURED = REPOSITORY / "deploy/compose/secured.yaml"

Service = dict[str, Any]


def tool() -> list[str]:
    """Compose as Docker's plugin, or as a program of its own."""
    plugin = ["docker", "compose"]
    if shutil.which("docker"):
        answer = subprocess.run([*plugin, "version"], capture_output=True, check=False)
        if answer.returncode == 0:
            return plugin
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    pytest.skip("docker compose is not installed")


def configured(*files: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """What compose makes of the files."""
    chosen = [word for file in files for word in ("-f", str(file))]
    bare = {name: value for name, value in os.environ.items() if not name.startswith("COMPOSE_")}
    return subprocess.run(
        [*tool(), *chosen, "config"],
        cwd=REPOSITORY,
        env=bare | environ,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def services() -> dict[str, Service]:
    """As YAML reads them, anchors resolved."""
    found: dict[str, Service] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_compose_accepts_it(profile: str) -> None:
    result = configured(COMPOSE, COMPOSE_PROFILES=profile)
    assert result.returncode == 0, result.stderr
    assert "127.0.0.1" in result.stdout


def test_without_a_choice_it_serves_the_demo() -> None:
    """From a fresh clone, with nothing edited: .env names the profile."""
    lines = (REPOSITORY / ".env").read_text().splitlines()
    assert "COMPOSE_PROFILES=cpu" in lines
    result = configured(COMPOSE)
    assert result.returncode == 0, result.stderr
    assert "/etc/tutti/demo.yaml" in result.stdout


def test_the_secured_form_takes_secrets_from_files_and_misses_them(tmp_path: Path) -> None:
    files = {"TUTTI_API_KEYS_FILE": tmp_path / "keys", "GRAFANA_PASSWORD_FILE": tmp_path / "password"}
    for file in files.values():
        file.write_text("secret")
    given = {name: str(file) for name, file in files.items()}
    result = configured(COMPOSE, SECURED, **given)
    assert result.returncode == 0, result.stderr
    both = yaml.safe_load(result.stdout)["services"]
    assert both["tutti"]["environment"]["TUTTI_SERVER__API_KEYS_FILE"] == "/run/secrets/tutti_api_keys"
    assert both["grafana"]["environment"]["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    for missing in files:
        result = configured(COMPOSE, SECURED, **{name: value for name, value in given.items() if name != missing})
        assert result.returncode != 0
        assert missing in result.stderr


def test_the_hubs_token_comes_from_a_file_beside_the_keys(tmp_path: Path) -> None:
    names = ("TUTTI_API_KEYS_FILE", "GRAFANA_PASSWORD_FILE", "HF_TOKEN_FILE")
    given = {name: str(tmp_path / name) for name in names}
    result = configured(COMPOSE, SECURED, COMPOSE_PROFILES="gpu", HF_TOKEN="hf_of_the_shell", **given)
    assert result.returncode == 0, result.stderr
    assert "hf_of_the_shell" not in result.stdout
    whole = yaml.safe_load(result.stdout)
    service = whole["services"]["tutti-gpu"]
    assert sorted(secret["source"] for secret in service["secrets"]) == ["hf_token", "tutti_api_keys"]
    assert service["environment"]["HF_TOKEN_PATH"] == "/run/secrets/hf_token"
    assert whole["secrets"]["hf_token"]["file"] == given["HF_TOKEN_FILE"]
    assert yaml.safe_load(COMPOSE.read_text())["secrets"]["hf_token"]["file"].endswith(":-/dev/null}"), (
        "no file needed"
    )


@pytest.mark.parametrize("file", [COMPOSE, SECURED])
def test_the_specification_allows_it(file: Path) -> None:
    check = Path(sys.executable).with_name("check-jsonschema")
    result = subprocess.run(
        [check, "--builtin-schema", "vendor.compose-spec", file], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_service_is_confined(services: dict[str, Service]) -> None:
    for name, service in services.items():
        user = service["user"].split(":")[0]
        assert int(user) > 0, name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["mem_limit"], name
        assert service["pids_limit"] > 0, name
        assert all("127.0.0.1" in port for port in service["ports"]), name


def test_images_are_pinned(services: dict[str, Service]) -> None:
    for service in services.values():
        _, _, tag = service["image"].partition(":")
        assert tag.count(".") == 2, service["image"]
    assert services["tutti"]["image"] == f"tutti:{__version__}-cpu"


def test_what_the_image_writes_lies_on_volumes(services: dict[str, Service]) -> None:
    environment = stages()["image"].variables("ENV")
    for name in ("tutti", "tutti-gpu"):
        mounted = [volume.split(":")[1] for volume in services[name]["volumes"]]
        for variable in ("HOME", "HF_HOME", "TUTTI_SERVER__CACHE_DIR"):
            assert any(environment[variable].startswith(folder) for folder in mounted)
        assert services[name]["user"] == stages()["image"].last("USER")


def test_what_runs_may_finish(services: dict[str, Service]) -> None:
    """Compose waits for longer than the server gives its requests."""
    for config in ("demo.yaml", "gpu/ensemble.yaml"):
        grace = read_settings(REPOSITORY / "deploy" / config).server.shutdown_seconds
        assert all(int(services[name]["stop_grace_period"][:-1]) >= grace + 10 for name in ("tutti", "tutti-gpu"))


def test_a_gpu_for_every_model(services: dict[str, Service]) -> None:
    devices = services["tutti-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    reserved = [gpu for device in devices for gpu in device["device_ids"]]
    models = read_settings(REPOSITORY / "deploy/gpu/ensemble.yaml").models
    assert {model.device for model in models.values()} == {f"cuda:{number}" for number in range(len(reserved))}
    assert len(models) == len(reserved)


def test_mounted_files_exist(services: dict[str, Service]) -> None:
    mounted = [volume.split(":")[-3:] for service in services.values() for volume in service["volumes"]]
    sources = [words[0].removeprefix("-").rstrip("}") for words in mounted if words[-1] == "ro"]
    assert len(sources) == 4
    assert all((REPOSITORY / source).exists() for source in sources), sources
