"""Loading: from settings to what serves them, by `fusion.assembly`."""

from __future__ import annotations

import logging
from pathlib import Path

from alignment.errors import ConfigError
from alignment.methods.map_cache import MapCache, user_cache
from fusion.assembly import runtime
from fusion.assembly.runtime import Runtime
from fusion.assembly.specs import BuildError
from server import __version__
from server.settings import ServerSettings, Settings

log = logging.getLogger(__name__)


def build(settings: Settings) -> Runtime:
    """Load everything that is needed to serve.

    Raises:
        ConfigError: a sentence that names the model or the ensemble as the file does.
    """
    alone = settings.needed if settings.server.serve_models else ()
    try:
        return runtime.build(
            {name: settings.models[name] for name in settings.needed},
            settings.ensembles,
            alone=alone,
            cache=open_cache(settings.server),
            tutti=__version__,
            max_waiting=settings.server.max_waiting,
        )
    except BuildError as error:
        raise ConfigError(in_file(error)) from error


def in_file(error: ConfigError) -> str:
    """The sentence of an error with the part of the file that it is about."""
    return f"{error.kind}s.{error.name}: {error.reason}" if isinstance(error, BuildError) else str(error)


def open_cache(server: ServerSettings) -> MapCache:
    """The cache that the configuration names; it is made when the first map is put there."""
    folder = Path(server.cache_dir) if server.cache_dir else user_cache()
    if folder is None:
        log.warning("there is no home folder to keep learned maps in: set server.cache_dir")
    return MapCache(folder / "maps" if folder else None, required=server.cache_dir is not None)
