"""Learned maps kept in a folder, for the next start and for other servers of this machine."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from alignment.errors import ConfigError
from alignment.methods.origin import Origin, load_with_origin, save_with_origin
from alignment.vocab_map import VocabMap

log = logging.getLogger(__name__)


class MapCache:
    """Maps by origin: those of `folder`, and those that this cache has handed out.

    A folder that cannot be written costs a warning and learning again at the next start, never an error; so does
    a damaged file. None keeps nothing beyond the process.

    Args:
        required: the folder was named explicitly, so it is an error if it cannot be written when a map has to be
            learned.
    """

    def __init__(self, folder: Path | None, *, required: bool = False) -> None:
        self._folder = folder
        self._required = required
        self._known: dict[str, VocabMap] = {}

    def find(self, origin: Origin) -> VocabMap | None:
        """The map of this origin if there is one."""
        try:
            return self._read(origin)
        except (ConfigError, OSError) as error:
            log.warning("a cached map cannot be used and will be learned again: %s", error)
            return None

    def find_or_learn(self, origin: Origin, learn: Callable[[], VocabMap]) -> VocabMap:
        """The map of this origin, learned and kept if there is none.

        Of several processes that miss the same map at a time one learns it, and the others wait for that.

        Raises:
            ConfigError: the folder cannot be written, and has to be.
        """
        if (map := self.find(origin)) is not None:
            return map
        path = self._path(origin)
        with ExitStack() as stack:
            if path is not None:
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(_alone(path.with_suffix(".lock")))
                except OSError as error:
                    if self._required:
                        raise ConfigError(
                            f"Learned maps cannot be kept in {path.parent} ({_reason(error)}): make it writable "
                            "for this user, or choose another folder for the cache."
                        ) from error
                    _warn(path, error)
                    path = None
            with suppress(ConfigError, OSError):  # another process may have learned it meanwhile
                if (map := self._read(origin)) is not None:
                    return map
            map = self._known[origin.key] = learn()
            if path is not None:
                try:
                    save_with_origin(map, path, origin)
                except OSError as error:
                    _warn(path, error)
            return map

    def _read(self, origin: Origin) -> VocabMap | None:
        """The map of this origin if there is one; ConfigError where its file is damaged."""
        path = self._path(origin)
        if origin.key not in self._known and path is not None and path.exists():
            map, found = load_with_origin(path)
            if found.key != origin.key:
                raise ConfigError(f"The vocabulary map {path} is not what its name says.")
            self._known[origin.key] = map
        return self._known.get(origin.key)

    def _path(self, origin: Origin) -> Path | None:
        return None if self._folder is None else self._folder / f"{origin.key}.safetensors"


def user_cache(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The folder of this user's cached files, by the XDG rules; None for a user without a home."""
    for base in (environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
        if os.path.isabs(base):
            return Path(base, "tutti")
    return None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, waiting while another process has it. The system frees it when a process ends."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is learning this map: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _warn(path: Path, error: OSError) -> None:
    message = "learned maps cannot be kept in %s (%s): they are learned at every start"
    log.warning(message, path.parent, _reason(error))


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
