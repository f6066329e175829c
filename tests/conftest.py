from __future__ import annotations

import os
import shutil
import sys
import tempfile
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

# No test depends on what the shell has set: colours of the command line, settings of the server and its traces, a
# proxy even for servers of this machine. Servers and workers that tests start inherit the rest.
COLOURS = {"GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
for name in list(os.environ):
    if name in COLOURS or name.startswith(("TUTTI_", "OTEL_")):
        del os.environ[name]
os.environ |= dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")

# What the tests learn stays out of the user's cache, in a folder that goes with them.
CACHE = tempfile.mkdtemp(prefix="tutti-tests-")
os.environ["XDG_CACHE_HOME"] = CACHE

# Models this small only lose time to handing work between threads, and other tests run beside these. Set before
# torch is imported; servers and workers that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

# A busy machine makes any example slow now and then, which says nothing about the code. Examples are the same in
# every run, so that a failure comes from the change at hand; `make explore` draws others.
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.register_profile("tutti", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tutti")

# By the beginnings of their paths: tests that share tokenizers, the import of vLLM or the demo's server.
TOGETHER = (
    ("tests/alignment/",),
    ("tests/fusion/members/vllm/",),
    tuple(
        f"tests/e2e/test_{name}."
        for name in ("api", "bad_input", "demo", "health", "hub", "leaks", "lm_eval", "vllm_demo")
    ),
)


class Together(LoadFileScheduling):
    """One worker of pytest-xdist runs a file, or all files that stand together."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return next((group[0] for group in TOGETHER if file.startswith(group)), file)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Weights that tests draw are the same in every run: without this each process has a seed of its own."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together | None:
    """What `--dist loadfile` means here."""
    return Together(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_unconfigure() -> None:
    """Not at exit: workers of pytest-xdist leave without."""
    shutil.rmtree(CACHE, ignore_errors=True)
