"""The commands: exit codes, what is printed where, and a server process from start to end."""

from __future__ import annotations

import subprocess
import sys

import pytest

from server import __version__
from tests.support.model_folders import REPOSITORY, run


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
