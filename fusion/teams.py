"""Teams: the OpenMP threads that torch keeps for every thread of ours that has computed.

Once all teams together have more threads than the machine has cores, libgomp no longer lets a team's threads spin
until the next parallel region: they sleep, and each of the hundred small multiplications of a pass begins with
waking them. A server loads on one thread and decodes on another, so it would stay that way. With two cores a round
over three adapters and the bare model took 2.7 times one of the bare model, and takes 1.6 to 1.8 times
(`python -m tools.bench.views`).
"""

from __future__ import annotations

import ctypes
import logging
from functools import cache

log = logging.getLogger(__name__)

_SOFT = 1  # omp_pause_soft: what the thread has set stays


def release_team() -> None:
    """End the team of the calling thread, which gets a new one if it computes again.

    Nothing but time is lost where no library can do so.
    """
    if (library := _library()) is not None:
        library.omp_pause_resource_all(_SOFT)


@cache
def _library() -> ctypes.CDLL | None:
    """The OpenMP library that torch has loaded: by its name, the loader finds the one that is there."""
    for name in ("libgomp.so.1", "libomp.dylib"):
        try:
            library = ctypes.CDLL(name)
            library.omp_pause_resource_all.argtypes = [ctypes.c_int]
            library.omp_pause_resource_all.restype = ctypes.c_int
        except (OSError, AttributeError):
            continue
        return library
    log.debug("no OpenMP library that can end a team")
    return None
