from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

# What the tests learn stays out of the user's cache, in a folder that goes with them.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="tutti-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# Models this small only lose time to handing work between threads, and other tests run beside these. Set before
# torch is imported; servers and workers that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared(*parts: str) -> Path:
    """A file of the reference data that lies beside the checkout; skips the test where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"reference data {'/'.join(parts)} is not here")
    return path
