"""What the image would run has run: the build's steps in an empty folder, its command, its health check."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.dockerfile import REPOSITORY, stages

INSTALLED = "/opt/tutti"
CONFIGURED = "/etc/tutti"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in place of the image's /, with what its stages copy and install."""
    root = tmp_path_factory.mktemp("image")
    source = root / "src"
    # Torch comes from where pip is configured to look, as it does in `make setup`.
    build, image = stages(TORCH_INDEX="")["build"], stages()["image"]
    for instruction, rest in build.steps:
        if instruction == "COPY":
            *files, target = rest.split()
            for file in files:
                _copy(REPOSITORY / file, source / target / (Path(file).name if target == "./" else ""))
        elif instruction == "RUN":
            words = [word.replace(INSTALLED, f"{root}{INSTALLED}") for word in shlex.split(rest)]
            command = [word for word in words if not word.startswith("--mount")]
            # Compiled modules make the image start faster; here they would only take time.
            environ = _bare() | {"PYTHON": sys.executable, "TORCH_INDEX": "", "PIP_NO_COMPILE": "1"}
            subprocess.run(command, cwd=source, env=environ, check=True)
    for rest in image.all("COPY"):
        if not rest.startswith("--from"):
            file, target = rest.split()
            _copy(REPOSITORY / file, Path(f"{root}{target}"))
    yield root
    shutil.rmtree(root)


@pytest.mark.timeout(900)  # a gigabyte of packages is unpacked
def test_the_server_of_the_image(root: Path) -> None:
    image = stages()["image"]
    environ = _bare() | {
        name: value.replace("/var/cache", f"{root}/var/cache")
        for name, value in image.variables("ENV").items()
        if name != "PATH"
    }
    environ["PATH"] = f"{root}{INSTALLED}/bin:{environ['PATH']}"
    for folder in ("tutti", "huggingface"):
        (root / "var/cache" / folder).mkdir(parents=True)
    command = [word.replace(CONFIGURED, f"{root}{CONFIGURED}") for word in image.command("CMD")]
    with subprocess.Popen(
        ["tutti", *command, "--host", "127.0.0.1", "--port", "0"],
        executable=root / "opt/tutti/bin/tutti",
        cwd=root / "etc/tutti",
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            ready = process.stdout.readline()
            assert "tutti-demo" in ready, process.stderr.read()
            port = ready.split(":")[-1].removesuffix("/v1\n")
            *words, code = image.command("HEALTHCHECK")
            python = [str(root / "opt/tutti/bin" / words[0]), *words[1:]]
            assert "127.0.0.1:8000" in code
            check = subprocess.run([*python, code.replace("8000", port)], env=environ, check=False)
            assert check.returncode == 0
            closed = subprocess.run(
                [*python, code.replace("8000", "1")], env=environ, capture_output=True, check=False
            )
            assert closed.returncode != 0
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()


def _bare() -> dict[str, str]:
    """Nothing of this process's environment but where programs and packages are found."""
    kept = ("PATH", "HOME", "SSL_CERT_FILE", "http_proxy", "https_proxy")
    return {name: value for name, value in os.environ.items() if name in kept or name.startswith("PIP_")}


def _copy(source: Path, target: Path) -> None:
    """As COPY does, without what .dockerignore keeps out."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)
