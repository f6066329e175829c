from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
import pytest

# What the tests learn stays out of the user's cache, in a folder that goes with them.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="tutti-tests-")

# What vLLM finds out about the classes of models takes a process of 20 seconds each: one is enough for all tests.
os.environ.setdefault("VLLM_CACHE_ROOT", str(Path(__file__).parents[1] / "build/vllm"))

# Models this small only lose time to handing work between threads, and other tests run beside these. Set before
# torch is imported; servers and workers that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

# A busy machine makes any example slow now and then, which says nothing about the code.
hypothesis.settings.register_profile("tutti", deadline=None)
hypothesis.settings.load_profile("tutti")

# By the beginning of their paths: tests that share servers, tokenizers or the import of vLLM, for one worker.
TOGETHER = ("tests/alignment/", "tests/fusion/members/vllm/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker of pytest-xdist runs a file, or what stands in TOGETHER (`--dist loadgroup`)."""
    for item in items:
        file = item.nodeid.split("::")[0]
        item.add_marker(pytest.mark.xdist_group(next(filter(file.startswith, TOGETHER), file)))


def pytest_unconfigure() -> None:
    """Not at exit: workers of pytest-xdist leave without."""
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
