"""The image as the Dockerfile describes it."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server import __version__
from server.settings import read_settings
from tests.support.demo import CONFIG
from tests.support.dockerfile import DOCKERFILE, REPOSITORY, Stage, stages

COMPILERS = ("gcc", "g++", "clang", "build-essential", "cmake", "make", "python3-dev", "libc6-dev")


@pytest.fixture
def image() -> Stage:
    return stages()["image"]


def test_lint() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_base_is_pinned_and_the_same_for_both_stages(image: Stage) -> None:
    """The environment is copied from one to the other, with the path of its interpreter in it."""
    assert image.base == stages()["packages"].base
    assert stages()["build"].base == "packages"
    _, _, tag = image.base.partition(":")
    assert tag.count(".") == 2, "a patch release"


def test_the_image_has_no_compiler(image: Stage) -> None:
    commands = " ".join(image.all("RUN")).split()
    assert not [word for word in commands if word.split("=")[0] in COMPILERS]
    assert "slim" in image.base


def test_it_runs_without_rights_and_writes_in_its_caches_only(image: Stage) -> None:
    assert image.last("USER") == "10001:10001"
    environment = image.variables("ENV")
    writable = ("/var/cache/tutti", "/var/cache/huggingface")
    for variable in ("HOME", "HF_HOME", "TUTTI_SERVER__CACHE_DIR"):
        assert environment[variable].startswith(writable)
    assert all(folder in " ".join(image.all("RUN")) for folder in writable)


def test_its_variables_are_settings_that_the_server_knows(image: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in image.variables("ENV").items():
        if name.startswith("TUTTI_"):
            monkeypatch.setenv(name, value)
    server = read_settings(CONFIG).server
    assert (server.host, server.port, server.cache_dir) == ("0.0.0.0", 8000, "/var/cache/tutti")
    assert image.last("EXPOSE") == "8000"


def test_signals_reach_the_server(image: Stage) -> None:
    """An exec form, with an init that passes SIGTERM on; a shell in between would swallow it."""
    assert image.command("ENTRYPOINT") == ["tini", "--", "tutti"]
    assert image.command("CMD")[0] == "serve"
    assert image.last("STOPSIGNAL") == "SIGTERM"


def test_labels(image: Stage) -> None:
    labels = image.variables("LABEL")
    assert labels["org.opencontainers.image.version"] == f"{__version__}-cpu"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_an_edit_of_the_source_leaves_the_packages_alone(image: Stage) -> None:
    """The stage that installs them knows the locks only, and its result is a layer of its own in the image."""
    copied = [source for rest in stages()["packages"].all("COPY") for source in rest.split()[:-1]]
    assert {Path(source).parent.as_posix() for source in copied} == {"requirements", "deploy/image"}
    assert "requirements/dev.lock" not in copied
    layers = [rest for word, rest in image.steps if word in ("COPY", "RUN")]
    of_the_build = [index for index, rest in enumerate(layers) if "from=build" in rest]
    assert len(of_the_build) == 2
    assert layers.index("--from=packages /opt/tutti /opt/tutti") < min(of_the_build)


def test_a_label_leaves_every_layer_alone() -> None:
    """All steps after an argument depend on it: a revision given to the build may have none to run anew."""
    lines = DOCKERFILE.read_text().partition(" AS image\n")[2].splitlines()
    instructions = [line.split()[0] for line in lines if line[:1].isalpha()]
    assert {"RUN", "COPY"}.isdisjoint(instructions[instructions.index("ARG") :])


def test_the_compiler_that_is_none(tmp_path: Path) -> None:
    """Triton is handed the one module that was compiled with the image; whoever else compiles is told no."""
    (tmp_path / "cuda_utils.so").write_text("the module")
    cc = tmp_path / "cc"
    shutil.copy2(REPOSITORY / "deploy/image/cc", cc)
    out = tmp_path / "out.so"
    subprocess.run([cc, "/tmp/x/cuda_utils.c", "-O3", "-shared", "-o", out, "-l:libcuda.so.1"], check=True)
    assert out.read_text() == "the module"
    other = subprocess.run([cc, "main.c", "-o", out], capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert "no compiler" in other.stderr


def test_locks_that_are_installed_together_pin_nothing_twice() -> None:
    names: list[str] = []
    for lock in ("serve.lock", "vllm-cuda.lock"):
        lines = (REPOSITORY / "requirements" / lock).read_text().splitlines()
        pins = [line for line in lines if not line.startswith("#")]
        assert all(re.fullmatch(r"[a-z0-9.-]+==[\w.!+]+", pin) for pin in pins)
        names += [pin.split("==")[0] for pin in pins]
    assert len(set(names)) == len(names)
    assert {"torch", "triton", "vllm"} < set(names)


def test_all_that_is_copied_exists_and_is_let_into_the_build() -> None:
    lets_in = [line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    for stage in stages().values():
        for rest in stage.all("COPY"):
            if rest.startswith("--from"):
                continue
            for source in rest.split()[:-1]:
                assert (REPOSITORY / source).exists(), source
                assert any(fnmatch.fnmatch(f"{source}/", f"{allowed}/*") for allowed in lets_in), source
