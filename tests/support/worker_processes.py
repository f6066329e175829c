"""Worker processes that this test run has started."""

from __future__ import annotations

from contextlib import suppress

import psutil


def workers() -> list[psutil.Process]:
    """Those that live, as they were started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # which a zombie counts as
            if "fusion.members.hosts.worker" in process.cmdline():
                found.append(process)
    return found
