"""What the image would run has run: the build's steps in an empty folder, then its command and its health check.

Where bubblewrap is installed the command runs as compose runs it: as a user without rights or capabilities, on a
file system that is read-only but for /tmp and the two caches.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.support.dockerfile import REPOSITORY, stages

INSTALLED = "/opt/tutti"
CONFIGURED = "/etc/tutti"
CACHES = "/var/cache"
SOURCE = "/src"
# What pip says when its last attempt to reach the index has failed.
UNANSWERED = re.compile(r"Retry\(total=0\b.*\n\s*ERROR: Could not find a version|Max retries exceeded")


@dataclass(frozen=True)
class Installed:
    """A folder in place of the image's /, with what its stages copy and install."""

    root: Path

    def here(self, text: str) -> str:
        """The image's paths as they are in this folder."""
        for folder in (INSTALLED, CONFIGURED, CACHES, SOURCE):
            text = text.replace(folder, f"{self.root}{folder}")
        return text

    @property
    def environ(self) -> dict[str, str]:
        """The image's ENV over nothing."""
        given = stages()["image"].variables("ENV")
        path = f"{self.root}{INSTALLED}/bin:{os.environ['PATH']}"
        return {name: self.here(value) for name, value in given.items()} | {"PATH": path}

    def confined(self, *command: str, writable: bool = True) -> list[str]:
        """A command as the container's user would run it, where that can be had."""
        if not confinement():
            return list(command)
        caches = f"{self.root}{CACHES}"
        view = ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
        image = ["--ro-bind", str(self.root), str(self.root), *(["--bind", caches, caches] if writable else [])]
        user = ["--unshare-user", "--uid", "10001", "--gid", "10001", "--die-with-parent"]
        return ["bwrap", *view, *image, *user, *command]


def confinement() -> bool:
    """Whether bubblewrap is here, and namespaces are allowed."""
    if shutil.which("bwrap") is None:
        return False
    return subprocess.run(["bwrap", "--ro-bind", "/", "/", "--unshare-user", "true"], check=False).returncode == 0


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    image = Installed(tmp_path_factory.mktemp("image"))
    source = Path(image.here(SOURCE))
    # Torch comes from where pip is configured to look, as it does in `make setup`.
    found = stages(TORCH_INDEX="")
    for instruction, rest in [step for name in ("packages", "build", "image") for step in found[name].steps]:
        if instruction == "COPY" and not rest.startswith("--from"):
            *files, target = rest.split()
            for file in files:
                _copy(
                    REPOSITORY / file, source / image.here(target) / (Path(file).name if target[-1] == "/" else "")
                )
        elif instruction == "RUN" and "apt-get" not in rest:
            command = [word for word in shlex.split(image.here(rest)) if not word.startswith("--mount")]
            # Compiled modules make the image start faster; here they would only take time.
            environ = _packages() | {"PYTHON": sys.executable, "PIP_NO_COMPILE": "1"}
            done = subprocess.run(command, cwd=source, env=environ, stderr=subprocess.PIPE, text=True, check=False)
            if done.returncode and UNANSWERED.search(done.stderr):
                pytest.skip(f"pip's index does not answer: {done.stderr.splitlines()[-1]}")
            assert done.returncode == 0, done.stderr
    for folder in ("tutti", "huggingface"):
        (image.root / "var/cache" / folder).mkdir(parents=True)
    # The container may not write compiled modules, so each of the programs below would compile them anew.
    imports = "import server.http.app, server.loading, server.commands.serve, fusion.members.transformers.engine"
    environ = image.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run([image.here(f"{INSTALLED}/bin/python"), "-c", imports], env=environ, check=True)
    yield image
    threading.Thread(target=shutil.rmtree, args=[image.root, True]).start()  # a gigabyte, which nobody waits for


@pytest.mark.timeout(900)  # a gigabyte of packages is unpacked
def test_the_server_of_the_image(installed: Installed) -> None:
    image = stages()["image"]
    command = [installed.here(word) for word in ("tutti", *image.command("CMD"))]
    *words, code = image.command("HEALTHCHECK")
    with subprocess.Popen(
        installed.confined(*command, "--host", "127.0.0.1", "--port", "0"),
        cwd=installed.here(CONFIGURED),
        env=installed.environ,
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
            for number, healthy in ((port, True), ("1", False)):
                assert "127.0.0.1:8000" in code
                asked = [*words, code.replace("8000", number)]
                check = subprocess.run(asked, env=installed.environ, capture_output=True, check=False)
                assert (check.returncode == 0) == healthy
            _innermost(process.pid).send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()


def test_a_cache_that_cannot_be_written(installed: Installed) -> None:
    if not confinement():
        pytest.skip("bubblewrap is not installed, or may not be used")
    learned = {"TUTTI_ENSEMBLES__TUTTI_DEMO__ALIGNMENT": "mined"}
    _refused(installed, learned, installed.environ["TUTTI_SERVER__CACHE_DIR"], writable=False)


def test_keys_that_cannot_be_read(installed: Installed) -> None:
    keys = installed.root / "keys.txt"
    _refused(installed, {"TUTTI_SERVER__API_KEYS_FILE": str(keys)}, f"{keys}: cannot be read: No such file")
    if confinement():
        keys.write_text("secret")
        keys.chmod(0)
        _refused(
            installed, {"TUTTI_SERVER__API_KEYS_FILE": str(keys)}, f"{keys}: cannot be read: Permission denied"
        )


def _refused(installed: Installed, environ: dict[str, str], sentence: str, writable: bool = True) -> None:
    """The container ends with a code that compose shows; the last line of its log is a sentence on what to do."""
    command = [installed.here(word) for word in ("tutti", *stages()["image"].command("CMD"))]
    result = subprocess.run(
        installed.confined(*command, "--port", "0", writable=writable),
        env=installed.environ | environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    last = result.stderr.splitlines()[-1]
    assert sentence in last
    assert "Traceback" not in result.stderr


def _innermost(pid: int) -> psutil.Process:
    """The server itself: bubblewrap stays around it and passes no signals on."""
    process = psutil.Process(pid)
    while process.name() == "bwrap":
        (process,) = process.children()
    return process


def _packages() -> dict[str, str]:
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
